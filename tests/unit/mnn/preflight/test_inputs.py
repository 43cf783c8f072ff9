"""The graph is walked back from the logits: what is missing on the way is named, what is dead is not."""

from __future__ import annotations

from pathlib import Path

import pytest

from qplan.mnn.engines import EngineVersion
from qplan.mnn.graph.binary import INPUT, BinaryGraph, GraphNode
from qplan.mnn.preflight.inputs import check_inputs
from qplan.mnn.preflight.model import ENGINE_INPUTS, ModelFolder

OP = 0
NOW = EngineVersion(3, 6, 1)


def graph(ops: dict[str, tuple[list[str], list[str]]], declared: tuple[str, ...] = ENGINE_INPUTS) -> BinaryGraph:
    """A graph from its ops' inputs and outputs, by the names of tensors; declared inputs are ops too."""
    ends: dict[str, tuple[list[str], list[str]]] = {name: ([], [name]) for name in declared} | ops
    names = list(dict.fromkeys(tensor for inputs, outputs in ends.values() for tensor in (*outputs, *inputs)))
    nodes = tuple(
        GraphNode(
            name,
            INPUT if name in declared else OP,
            tuple(map(names.index, inputs)),
            tuple(map(names.index, outputs)),
            externals=(),
            convolutions=(),
        )
        for name, (inputs, outputs) in ends.items()
    )
    return BinaryGraph(nodes, (), tuple(names), ("logits",), "")


GOOD = {
    "embed": (["input_ids", "position_ids"], ["stream"]),
    "attend": (["stream", "attention_mask"], ["seen"]),
    "head": (["seen", "logits_index"], ["logits"]),
}


def found(ops: dict[str, tuple[list[str], list[str]]], engine: EngineVersion = NOW, **more: object) -> list[str]:
    """Code and place of every finding."""
    model = ModelFolder(Path("model"), engine, graph=graph(ops, **more))  # type: ignore[arg-type]
    return [f"{finding.code} {finding.severity} {finding.where}" for finding in check_inputs(model)]


def test_a_good_graph_has_no_findings() -> None:
    assert found(GOOD) == []


def test_a_dead_op_may_read_what_nobody_makes() -> None:
    assert found({**GOOD, "dead": (["nothing"], ["unread"])}) == []


def test_a_tensor_that_nobody_makes_is_named_at_its_first_reader() -> None:
    broken = {
        **GOOD,
        "attend": (["stream", "attention_mask", "lost"], ["seen"]),
        "head": (["seen", "lost"], ["logits"]),
    }
    assert "dangling-tensor error llm.mnn, attend" in found(broken)
    assert len([code for code in found(broken) if code.startswith("dangling")]) == 1


def test_an_input_that_the_engine_does_not_know_is_named() -> None:
    asks = {**GOOD, "embed": (["input_ids", "position_ids", "speaker"], ["stream"])}
    assert found(asks, declared=(*ENGINE_INPUTS, "speaker")) == ["unfed-input error llm.mnn, embed"]


def test_an_old_engine_feeds_no_logits_index() -> None:
    assert found(GOOD, EngineVersion(3, 0, 5)) == ["unfed-input error llm.mnn, head"]


def test_a_graph_without_logits_cannot_run() -> None:
    assert found({**GOOD, "head": (["seen", "logits_index"], ["scores"])}) == ["no-logits error llm.mnn"]
    assert found({**GOOD, "head": (["seen", "logits"], ["scores"])}) == ["no-logits error llm.mnn"]


@pytest.mark.parametrize(
    ("ignored", "told"),
    [("input_ids", ["unused-input error llm.mnn"]), ("logits_index", ["unused-input warning llm.mnn"])],
)
def test_what_the_logits_do_not_depend_on_is_told(ignored: str, told: list[str]) -> None:
    ops = {name: ([t for t in inputs if t != ignored], outputs) for name, (inputs, outputs) in GOOD.items()}
    assert found(ops) == told


def test_an_input_that_is_used_without_being_declared_is_told() -> None:
    declared = tuple(name for name in ENGINE_INPUTS if name != "position_ids")
    assert found(GOOD, declared=declared) == ["undeclared-input warning llm.mnn"]
