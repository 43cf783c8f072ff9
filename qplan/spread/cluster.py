"""Tasks on a Ray cluster, which people start themselves; see `qplan.spread` for who writes what."""

from __future__ import annotations

import logging
import os
import socket
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from qplan.errors import InputError, ToolError
from qplan.spread.held import Held
from qplan.spread.task import Failure, perform
from qplan.spread.work import Item, Result, Task, Work

RETRIES = 5
"""How often a task is done again whose worker died, before that counts as its own fault."""

_AHEAD = 2
"""Tasks that are handed out per slot: one runs, another is ready when it ends."""

_LISTENS_S = 10.0
"""How long to wait for an answer from a cluster's head."""

_PROCESS_BYTES = 512 << 20
"""A worker that has imported torch and transformers, and nothing more."""

_INSTALL = "pip install 'qplan[ray]'"


@dataclass
class Cluster:
    """A connection to a running cluster."""

    ray: Any
    """The module."""
    address: str
    _sent: dict[int, tuple[object, Any]] = field(default_factory=dict)
    """Work that the object store holds, by identity."""

    def run(self, work: Work[Item, Result], tasks: Sequence[Task[Item]]) -> Iterator[tuple[int, Result]]:
        """See `qplan.spread.work.Workers`."""
        remote, key, sent = self._remote(work), *self._send(work)
        waiting = iter(enumerate(tasks))
        running: dict[Any, int] = {}
        most = _AHEAD * self._slots(work)
        try:
            while True:
                for index, task in islice(waiting, most - len(running)):
                    running[remote.remote(key, [sent], task.item, work.threads)] = index
                if not running:
                    return
                for reference in self.ray.wait(list(running), num_returns=1)[0]:
                    index = running.pop(reference)
                    yield index, self._result(reference, tasks[index].label)
        finally:
            for reference in running:
                self.ray.cancel(reference)

    def run_held(self, work: Work[Item, Sequence[Any]], tasks: Sequence[Task[Item]], parts: int) -> list[list[Any]]:
        """See `qplan.spread.work.Workers`."""
        remote, key, sent = self._remote(work, parts + 1), *self._send(work)
        found = [remote.remote(key, [sent], task.item, work.threads, parts) for task in tasks]
        for (first, *_), task in zip(found, tasks, strict=True):
            self._result(first, task.label)
        return [[Held(reference) for reference in rest] for _, *rest in found]

    def check_memory(self, work: Work[Any, Any], what: str) -> None:
        """Refuse work for which no worker would ever have room: its tasks would wait forever.

        Raises:
            InputError: the most that a node has, and what is needed.
        """
        nodes = [node["Resources"] for node in self.ray.nodes() if node["Alive"]]
        memory = max((int(node.get("memory", 0)) for node in nodes), default=0)
        if _memory_of(work) > memory:
            msg = (
                f"{what} needs {_memory_of(work) / 1e9:.1f} GB in every worker, and the largest node of the Ray "
                f"cluster at {self.address} offers {memory / 1e9:.1f} GB; add a larger one, or give it more memory "
                "with 'ray start --memory=BYTES'"
            )
            raise InputError(msg)

    def _remote(self, work: Work[Any, Any], returns: int = 1) -> Any:  # noqa: ANN401 - Ray's
        self.check_memory(work, type(work).__name__)
        return self.ray.remote(perform).options(
            num_cpus=self.threads(work),
            memory=_memory_of(work),
            max_retries=RETRIES,
            num_returns=returns,
            retry_exceptions=False,
        )

    def threads(self, work: Work[Any, Any]) -> int:
        """Processors that a task reserves: what it computes on, if a node has as many."""
        most = max((int(node["Resources"].get("CPU", 0)) for node in self.ray.nodes() if node["Alive"]), default=1)
        return max(1, min(work.threads, most))

    def _slots(self, work: Work[Any, Any]) -> int:
        """Tasks that the cluster does at a time."""
        total = self.ray.cluster_resources()
        by_cpu = int(total.get("CPU", 1)) // self.threads(work)
        return max(1, min(by_cpu, int(total.get("memory", 0) // _memory_of(work))))

    def _send(self, work: object) -> tuple[str, Any]:
        """Put work where workers find it, once."""
        if id(work) not in self._sent:
            self._sent.clear()
            self._sent[id(work)] = work, self.ray.put(work)
        reference = self._sent[id(work)][1]
        return str(reference.hex()), reference

    def _result(self, reference: Any, label: str) -> Any:  # noqa: ANN401 - whatever a task returns
        """A task's result.

        Raises:
            QplanError: what it raised.
            ToolError: its workers died.
        """
        try:
            found = self.ray.get(reference)
        except self.ray.exceptions.RayTaskError:
            raise
        except self.ray.exceptions.RayError as error:
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            msg = (
                f"{label}: its worker on the Ray cluster at {self.address} died {RETRIES + 1} times; look at its logs, "
                "or give it more memory. What is done is kept: the same command goes on from there"
            )
            raise ToolError(msg, tail="\n".join(lines[:4])) from None
        if isinstance(found, Failure):
            raise found.error(label)
        return found


def _memory_of(work: Work[Any, Any]) -> int:
    """RAM of a worker."""
    return _PROCESS_BYTES + work.memory_bytes


def _check_listens(address: str) -> None:
    """Refuse an address that nobody listens at: Ray would try for minutes.

    Raises:
        ValueError: it is no address.
        OSError: nobody listens there.
    """
    if address != "auto":
        host, _, port = address.rpartition(":")
        with socket.create_connection((host, int(port)), timeout=_LISTENS_S):
            pass


@contextmanager
def connected(address: str) -> Iterator[Cluster]:
    """Connect to a running cluster; nothing is started.

    Ray's usage statistics are switched off, and its log lines go to its own files.

    Args:
        address: ``auto`` for the one that this machine belongs to, or ``HOST:PORT`` of its head.

    Raises:
        InputError: Ray is not installed, there is no such cluster, or it runs other versions.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    try:
        import ray  # noqa: PLC0415 - an extra, and slow
    except ImportError:
        msg = f"--ray {address} needs Ray, which is not installed here: {_INSTALL}"
        raise InputError(msg) from None
    try:
        _check_listens(address)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about its own future
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, configure_logging=False)
    except (ConnectionError, ValueError, RuntimeError, OSError, AssertionError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        msg = (
            f"--ray {address}: no connection to a Ray cluster: {first.rstrip('.')}. Start one with 'ray start --head' "
            "here and 'ray start --address=HOST:6379' on the other machines, with the same versions of Python and Ray"
        )
        raise InputError(msg) from None
    try:
        yield Cluster(ray, address)
    finally:
        ray.shutdown()
