"""What the JSON form of a graph says about its linears."""

import json
from pathlib import Path
from typing import Any

import pytest

from qplan.errors import InputError
from qplan.formats import FP16, FP32, QuantFormat
from qplan.mnn.graph.json_graph import Record, linear_ops, read_document
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


@pytest.mark.parametrize(
    "fmt",
    [FP16, FP32, *map(QuantFormat.parse, ["int8", "int4-b32", "int4-b0-s32", "int3-sym", "int6-b16-sym-s32", "int2"])],
)
def test_patched_graph_reads_back_as_its_format(fmt: QuantFormat) -> None:
    record = Record(7, fmt.header_bytes(8, 64) + fmt.code_bytes(8, 64), fmt.alpha_bytes(8, 64), 32)
    document = graph("/q")
    formats, records = {"/q": fmt, "/expert/0_0/up": FP16}, {"/q": record, "/expert/0_0/up": Record(9, 1024, 0, 0)}
    patch_graph(document, formats, records, {2112: 5000})
    op, expert = linear_ops(json.loads(json.dumps(document)))
    assert op.record == record
    assert op.holds(fmt)
    assert not op.holds(QuantFormat(5))
    assert op.format == (fmt if fmt.block != 64 else QuantFormat(fmt.bits, 0, fmt.symmetric, fmt.scale_bits))
    assert (expert.name, expert.bias, expert.record.offset) == ("/expert/0_0/up", False, 9)
    assert document["oplists"][1]["main"]["external"] == [5000, 256, 256]


def test_declaration_that_contradicts_the_bytes_is_seen() -> None:
    # what llmexport 0.0.5 writes for a symmetric op in an asymmetric export
    document = graph("/q")
    document["oplists"][0]["main"] |= {
        "quanParameter": {"type": 1, "aMaxOrBits": 8, "aMin": 1, "readType": 16, "scaleStorage": "FP32"},
        "external": [0, 261 + 512, 16 * 4, 32, 0],
    }
    op = linear_ops(document)[0]
    assert not op.holds(QuantFormat(8, 32, symmetric=True, scale_bits=32))
    assert not op.holds(QuantFormat(8, 32, scale_bits=32))


def test_other_convolutions_are_no_linears() -> None:
    document = graph("/q", "/k")
    document["oplists"][1]["main"]["common"]["kernelX"] = 3
    assert [op.name for op in linear_ops(document)] == ["/q", "/expert/0_0/up"]


def test_repeated_and_absent_linears_are_refused() -> None:
    with pytest.raises(InputError, match="of one name: /q;"):
        linear_ops(graph("/q", "/q"))
    with pytest.raises(InputError, match="no linears"):
        linear_ops({"oplists": []})


@pytest.mark.parametrize("text", ["", "[]", "{}", "{"])
def test_what_is_no_graph_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "llm.mnn.json"
    path.write_text(text)
    with pytest.raises(InputError, match="export the model again"):
        read_document(path)
    with pytest.raises(InputError, match="cannot be read"):
        read_document(tmp_path / "absent")
