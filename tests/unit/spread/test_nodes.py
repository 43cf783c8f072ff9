"""A node that lacks something is named, with what to do about it, before anything starts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from qplan.errors import InputError, QplanError, StaleArtifactError
from qplan.jobs.options import AnalyzeOptions, EmitOptions
from qplan.scratch import remove_leftovers
from qplan.spread.nodes import NodeFacts, check_facts, look, token_in

HERE = NodeFacts({"qplan": "1", "torch": "2"}, "AVX512", "token", wrote=True, model="sha")
RUN, MODEL = Path("/runs/mine"), Path("/models/mine")


def test_a_node_like_this_machine_is_fit() -> None:
    check_facts("10.0.0.2", HERE, HERE, RUN, MODEL)
    # others' arithmetic is told, and a hub id is fetched there
    check_facts("10.0.0.2", replace(HERE, arithmetic="AVX2", model=None), HERE, RUN, None)


@pytest.mark.parametrize(
    ("facts", "kind", "told"),
    [
        (replace(HERE, versions={"qplan": "1", "torch": "3"}), StaleArtifactError, r"has torch 3 \(here 2\).* install"),
        (replace(HERE, run=None, wrote=False), InputError, "does not see the run folder /runs/mine; put it on storage"),
        (replace(HERE, run="another"), InputError, "does not see the run folder /runs/mine"),
        (replace(HERE, wrote=False), InputError, "cannot write in the run folder /runs/mine"),
        (replace(HERE, model=None), InputError, "does not see the model /models/mine as it is here; put it on"),
        (replace(HERE, model="another"), InputError, "does not see the model /models/mine as it is here"),
    ],
)
def test_a_node_that_lacks_something_is_named(facts: NodeFacts, kind: type[QplanError], told: str) -> None:
    with pytest.raises(kind, match=f"Ray node 10.0.0.2 {told}"):
        check_facts("10.0.0.2", facts, HERE, RUN, MODEL)


def test_a_look_proves_reading_and_writing_and_leaves_nothing(tmp_path: Path) -> None:
    token, config = tmp_path / ".ray-1", tmp_path / "config.json"
    token.write_text("secret")
    config.write_text("{}")
    found = look(token, config)
    assert (found.run, found.wrote) == ("secret", True)
    assert found.model is not None
    assert set(tmp_path.iterdir()) == {token, config}
    missing = look(tmp_path / "elsewhere" / "token", tmp_path / "no-config")
    assert (missing.run, missing.wrote, missing.model) == (None, False, None)


@pytest.mark.parametrize("address", ["", "head", "head:port", "http://head:6379", "head:6379 ", "head:0", "head:65536"])
def test_a_word_that_names_no_cluster_is_refused(address: str) -> None:
    for options in (lambda: AnalyzeOptions(model="m", ray=address), lambda: EmitOptions(ray=address)):
        with pytest.raises(InputError, match="write auto, or HOST:PORT"):
            options()
    assert AnalyzeOptions(model="m", ray="auto").ray == "auto"
    assert EmitOptions(ray="head:6379").ray == "head:6379"


def test_workers_have_no_gpu() -> None:
    with pytest.raises(InputError, match="--ray auto --device cuda: workers of a cluster compute on processors"):
        AnalyzeOptions(model="m", ray="auto", device="cuda")


def test_what_a_kill_leaves_in_the_run_folder_is_removed(tmp_path: Path) -> None:
    token = token_in(tmp_path)
    token.touch()
    token.with_name(f"{token.name}.0123abcd").touch()  # a node's answer
    assert remove_leftovers(tmp_path) == 2
    assert not list(tmp_path.iterdir())
