"""The graph of an exported folder with other formats and other places in the weight file."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path

from qplan.formats import QuantFormat
from qplan.mnn.graph.converter import json_to_graph
from qplan.mnn.graph.json_graph import (
    GRAPH_FILE,
    GRAPH_JSON_FILE,
    Node,
    Record,
    external,
    is_linear,
    linear_ops,
    nodes,
    read_document,
)


def patch_graph(
    document: Node, formats: Mapping[str, QuantFormat], records: Mapping[str, Record], moved: Mapping[int, int]
) -> Node:
    """Point every op to its new bytes and tell every linear its format.

    Args:
        document: JSON form of the graph; changed in place.
        formats: format by op name.
        records: new place by op name.
        moved: new offset by old offset, for all that is not a linear.

    Returns:
        The same document.
    """
    for node in nodes(document):
        ranges = external(node)
        if ranges is None:
            continue
        if not is_linear(node):
            node["main"]["external"] = [moved[ranges[0]], *ranges[1:]]
            continue
        common, name = node["main"]["common"], node["name"]
        fmt, record = formats[name], records[name]
        if fmt.bits == 32:
            # without quantization parameters a convolution holds floats: weights, then bias
            node["main"].pop("quanParameter", None)
            node["main"]["external"] = [record.offset, record.weight, record.bias]
            continue
        node["main"]["quanParameter"] = _parameters(fmt, int(common["outputCount"]), int(common["inputCount"]))
        node["main"]["external"] = [record.offset, record.weight, record.alpha, record.bias, 0]
    return document


def rebuilt_bytes(folder: Path) -> int:
    """Size of an exported folder's graph when qplan writes it at the export's own formats.

    Not the size of its ``llm.mnn``: the exporter's last step packs a graph a few percent differently.

    Raises:
        ToolError: the graph cannot be converted.
    """
    document = read_document(folder / GRAPH_JSON_FILE)
    ops = linear_ops(document)
    stay = {ranges[0]: ranges[0] for node in nodes(document) if (ranges := external(node)) is not None}
    patch_graph(document, {op.name: op.format for op in ops}, {op.name: op.record for op in ops}, stay)
    with tempfile.TemporaryDirectory(prefix="qplan-graph-") as work:
        source, target = Path(work) / GRAPH_JSON_FILE, Path(work) / GRAPH_FILE
        source.write_text(json.dumps(document), encoding="utf-8")
        json_to_graph(source, target)
        return target.stat().st_size


def _parameters(fmt: QuantFormat, out_features: int, in_features: int) -> Node:
    if fmt.bits == 16:
        return {"type": 3}
    return {
        "type": 1,
        "aMaxOrBits": fmt.bits,
        "aMin": 0 if fmt.symmetric else 1,
        "readType": 0 if fmt.symmetric else out_features * (in_features // fmt.block_size(in_features)),
        "scaleStorage": f"FP{fmt.scale_bits}",
        "shapeInt32": max(out_features, in_features) > 65535,
        "quantScale": 1.0,
        "scaleIn": 0.0,
        "scaleOut": 0.0,
        "useInt32": False,
        "has_scaleInt": False,
        "weightSize": 0,
    }
