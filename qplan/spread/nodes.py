"""What every node of a cluster must have, proved before anything starts: versions, the run folder, the model."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qplan.artifact import sha256_bytes, versions, write_text
from qplan.errors import InputError, StaleArtifactError
from qplan.run.folder import RunFolder
from qplan.scratch import sibling_prefix
from qplan.settings import Say
from qplan.spread.cluster import Cluster, connected


@dataclass(frozen=True)
class NodeFacts:
    """What one node has."""

    versions: Mapping[str, str]
    arithmetic: str
    """Vector instructions that torch uses there: others round some sums otherwise."""
    run: str | None
    """What it read in the run folder's token; None if it sees none."""
    wrote: bool
    """Whether it could write there."""
    model: str | None
    """Hash of the model's configuration; None if it sees none."""


def token_in(run: Path) -> Path:
    """A new name in a run folder for what nodes are to see there; if a kill leaves it, the next command removes it."""
    return run / f"{sibling_prefix(run / 'ray')}{secrets.token_hex(4)}"


def look(token: Path, config: Path | None) -> NodeFacts:
    """What the node that this runs on has."""
    import torch  # noqa: PLC0415 - slow, and not for --help

    run, wrote = None, False
    try:
        run = token.read_text()
        answer = token.with_name(f"{token.name}.{secrets.token_hex(4)}")
        answer.touch()
        answer.unlink()
        wrote = True
    except OSError:
        pass
    model = sha256_bytes(config.read_bytes()) if config is not None and config.is_file() else None
    return NodeFacts(versions(), str(torch.backends.cpu.get_cpu_capability()), run, wrote, model)


def check_facts(node: str, facts: NodeFacts, here: NodeFacts, run: Path, model: Path | None) -> None:
    """Hold a node against this machine.

    Args:
        node: its address, for messages.
        facts: what it has.
        here: what this machine has.
        run: the run folder.
        model: the model's folder; None for a hub id, which every node fetches itself.

    Raises:
        StaleArtifactError: other versions.
        InputError: a folder that is not shared.
    """
    others = [
        f"{name} {facts.versions.get(name)} (here {value})"
        for name, value in here.versions.items()
        if facts.versions.get(name) != value
    ]
    if others:
        msg = f"Ray node {node} has {', '.join(others)}, and bits would differ; install the same versions on every node"
        raise StaleArtifactError(msg)
    if facts.run != here.run or not facts.wrote:
        seen = "cannot write in" if facts.run == here.run else "does not see"
        msg = (
            f"Ray node {node} {seen} the run folder {run}; put it on storage that all nodes mount at the same path "
            "(NFS, or a mounted bucket) with --run"
        )
        raise InputError(msg)
    if model is not None and facts.model != here.model:
        msg = (
            f"Ray node {node} does not see the model {model} as it is here; put it on storage that all nodes mount at "
            "the same path, or name it by its hub id or a bucket's URL"
        )
        raise InputError(msg)


@contextmanager
def workers_at(address: str | None, run: RunFolder, model: Path | None, say: Say) -> Iterator[Cluster | None]:
    """The workers that an option names, once all nodes are found to be fit; None for this process alone.

    Args:
        address: see `connected`; None if the option was not given.
        run: the run folder, which exists.
        model: the model's folder; None for a hub id.
        say: called with a line about the cluster.

    Raises:
        InputError: no cluster, or a node that does not see the run folder or the model.
        StaleArtifactError: a node has other versions.
    """
    if address is None:
        yield None
        return
    with connected(address) as cluster:
        nodes = [node for node in cluster.ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
        if not nodes:
            msg = f"the Ray cluster at {address} has no processors; add a machine: 'ray start --address=HOST:6379'"
            raise InputError(msg)
        here, found = _look_everywhere(cluster, nodes, run.folder, model)
        for node, facts in zip(nodes, found, strict=True):
            check_facts(node["NodeManagerAddress"], facts, here, run.folder.resolve(), model)
        say(_described(nodes, here, found))
        yield cluster


def _look_everywhere(
    cluster: Cluster, nodes: Sequence[Mapping[str, Any]], run: Path, model: Path | None
) -> tuple[NodeFacts, list[NodeFacts]]:
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy  # noqa: PLC0415 - an extra

    token = token_in(run.resolve())
    config = None if model is None else model / "config.json"
    remote = cluster.ray.remote(look)
    try:
        write_text(token, secrets.token_hex(16))
        here = look(token, config)
        references = [
            remote.options(
                num_cpus=0,
                max_retries=0,
                scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False),
            ).remote(token, config)
            for node in nodes
        ]
        found = [_facts(cluster, node, reference) for node, reference in zip(nodes, references, strict=True)]
    finally:
        token.unlink(missing_ok=True)
    return here, found


def _facts(cluster: Cluster, node: Mapping[str, Any], reference: Any) -> NodeFacts:  # noqa: ANN401 - Ray's
    """What a node answers.

    Raises:
        InputError: it cannot run qplan.
    """
    try:
        facts: NodeFacts = cluster.ray.get(reference)
    except cluster.ray.exceptions.RayError as error:
        last = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        msg = (
            f"Ray node {node['NodeManagerAddress']} cannot run qplan: {last}. Install the same qplan there, in the "
            "Python that 'ray start' runs in"
        )
        raise InputError(msg) from None
    return facts


def _described(nodes: Sequence[Mapping[str, Any]], here: NodeFacts, found: Sequence[NodeFacts]) -> str:
    cpus = int(sum(node["Resources"]["CPU"] for node in nodes))
    told = f"Ray: {len(nodes)} nodes with {cpus} processors"
    others = sorted({facts.arithmetic for facts in found} - {here.arithmetic})
    if others:
        told += f"; {', '.join(others)} on some, {here.arithmetic} here: last digits of losses may differ"
    return told
