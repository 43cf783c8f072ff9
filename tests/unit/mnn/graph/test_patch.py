"""A patched graph declares the formats and places that were asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from qplan.errors import InputError, ToolError
from qplan.formats import FP16, FP32, QuantFormat
from qplan.mnn.graph.binary import CONVOLUTION, BinaryGraph, GraphNode
from qplan.mnn.graph.json_graph import nodes, read_document
from qplan.mnn.graph.linear import FLOATS, HALVES, INTEGERS, Linear, Record
from qplan.mnn.graph.patch import patch_graph


def linear_node(name: str, offset: int = 0) -> dict[str, Any]:
    common = {"kernelX": 1, "kernelY": 1, "group": 1, "outputCount": 8, "inputCount": 64}
    main = {"common": common, "quanParameter": {"type": 3}, "external": [offset, 1024, 0, 32, 0]}
    return {"type": "Convolution", "name": name, "main": main}


def graph(*names: str) -> dict[str, Any]:
    norm = {"type": "LayerNorm", "name": "norm", "main": {"external": [2112, 256, 256]}}
    relu = {"type": "ReLU", "name": "relu", "main_type": "NONE"}
    expert = {"name": "/expert/0_0", "nodes": [linear_node("/expert/0_0/up", 1056)]}
    return {"oplists": [*(linear_node(name) for name in names), norm, relu], "subgraphs": [expert]}


def converted(node: dict[str, Any]) -> Linear:
    """What the converter makes of a linear's JSON form, by MNN's schema; the engine's tests hold it to the real one."""
    main, quant = node["main"], node["main"].get("quanParameter")
    coding = FLOATS if quant is None else int(quant["type"])
    return Linear(
        name=node["name"],
        out_features=main["common"]["outputCount"],
        in_features=main["common"]["inputCount"],
        kernel=main["common"]["kernelX"] * main["common"]["kernelY"],
        group=main["common"]["group"],
        coding=coding,
        bits={FLOATS: 32, HALVES: 16}.get(coding, (quant or {}).get("aMaxOrBits", 0)),
        zero_points=(quant or {}).get("readType", 0),
        wide_shape=(quant or {}).get("shapeInt32", False),
        scale_bits=16 if (quant or {}).get("scaleStorage") == "FP16" else 32,
        external=tuple(main["external"]),
    )


def integers(**changes: object) -> Linear:
    """An int8 linear of 8 x 64 in two blocks of 32, with changes."""
    usual: dict[str, Any] = {
        "name": "/q",
        "out_features": 8,
        "in_features": 64,
        "coding": INTEGERS,
        "bits": 8,
        "zero_points": 16,
        "external": (0, 262 + 512, 16 * 2 * 4, 32, 0),
    }
    return Linear(**(usual | changes))


def node_of(linear: Linear, kind: int = CONVOLUTION) -> GraphNode:
    return GraphNode(linear.name, kind, (), (), (linear.external,), (linear,))


@pytest.mark.parametrize(
    "fmt",
    [FP16, FP32, *map(QuantFormat.parse, ["int8", "int4-b32", "int4-b0-s32", "int3-sym", "int6-b16-sym-s32", "int2"])],
)
def test_patched_graph_reads_back_as_its_format(fmt: QuantFormat) -> None:
    record = Record(7, fmt.header_bytes(8, 64) + fmt.code_bytes(8, 64), fmt.alpha_bytes(8, 64), 32)
    document = graph("/q")
    formats, records = {"/q": fmt, "/expert/0_0/up": FP16}, {"/q": record, "/expert/0_0/up": Record(9, 1024, 0, 0)}
    patch_graph(document, formats, records, {2112: 5000})
    op, expert = (converted(node) for node in nodes(document) if node["type"] == "Convolution")
    assert op.record == record
    assert op.holds(fmt)
    assert not op.holds(QuantFormat(5))
    assert op.format == (fmt if fmt.block != 64 else QuantFormat(fmt.bits, 0, fmt.symmetric, fmt.scale_bits))
    assert (expert.name, expert.bias, expert.record.offset) == ("/expert/0_0/up", False, 9)
    assert document["oplists"][1]["main"]["external"] == [5000, 256, 256]


def test_bytes_that_nobody_knows_are_not_left_behind() -> None:
    formats, records = {"/q": FP16, "/expert/0_0/up": FP16}, dict.fromkeys(("/q", "/expert/0_0/up"), Record(9, 9, 0, 0))
    with pytest.raises(ToolError, match=r"norm reads byte 2112 in llm\.mnn\.json and not in llm\.mnn"):
        patch_graph(graph("/q"), formats, records, {})


def test_declaration_that_contradicts_the_bytes_is_seen() -> None:
    assert integers().holds(QuantFormat(8, 32, scale_bits=32))
    # what llmexport 0.0.5 writes for a symmetric op in an asymmetric export
    op = integers(external=(0, 262 + 512, 16 * 4, 32, 0))
    assert not op.holds(QuantFormat(8, 32, symmetric=True, scale_bits=32))
    assert not op.holds(QuantFormat(8, 32, scale_bits=32))


def test_a_coding_or_width_that_is_not_known_is_no_format() -> None:
    with pytest.raises(InputError, match="stored in coding 2"):
        _ = integers(coding=2).format
    with pytest.raises(InputError, match="width of 1 bits"):
        _ = integers(bits=1).format


def test_only_plain_products_are_linears() -> None:
    depthwise, bare, wide = (
        integers(name="/d", group=8),
        integers(name="/b", external=()),
        integers(name="/k", kernel=3),
    )
    plain, others = node_of(integers()), tuple(map(node_of, (depthwise, wide)))
    found = BinaryGraph((*others, plain), (node_of(integers(name="/expert/0_0/up")), node_of(bare)), (), (), "")
    assert [op.name for op in found.linears] == ["/q", "/expert/0_0/up"]
    assert set(found.other_ranges) == {depthwise.external, bare.external}


def test_repeated_fused_and_absent_linears_are_refused() -> None:
    plain = node_of(integers())
    with pytest.raises(InputError, match="share a name: /q;"):
        _ = BinaryGraph((plain, plain), (), (), (), "").linears
    with pytest.raises(InputError, match="no linears"):
        _ = BinaryGraph((), (), (), (), "").linears
    with pytest.raises(InputError, match="fused linears: /q; export it with --disable_transformer_c4"):
        _ = BinaryGraph((plain, node_of(integers(), 307)), (), (), (), "").linears


@pytest.mark.parametrize("text", ["", "[]", "{}", "{"])
def test_what_is_no_graph_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "llm.mnn.json"
    path.write_text(text)
    with pytest.raises(InputError, match="export the model again"):
        read_document(path)
    with pytest.raises(InputError, match="cannot be read"):
        read_document(tmp_path / "absent")
