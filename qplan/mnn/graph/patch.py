"""Rewrites the graph of an exported folder for other formats and other places in the weight file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from qplan.artifact import temporary_folder
from qplan.errors import ToolError
from qplan.formats import QuantFormat
from qplan.mnn.files import GRAPH_FILE, GRAPH_JSON_FILE
from qplan.mnn.graph.binary import BinaryGraph
from qplan.mnn.graph.converter import json_to_graph
from qplan.mnn.graph.json_graph import Node, nodes, read_document
from qplan.mnn.graph.linear import Record, declaration


def patch_graph(
    document: Node, formats: Mapping[str, QuantFormat], records: Mapping[str, Record], moved: Mapping[int, int]
) -> Node:
    """Point every op to its new bytes and declare every linear's format.

    Args:
        document: JSON form of the graph; changed in place.
        formats: format by op name, of every linear.
        records: new place by op name.
        moved: new offset by old offset, for everything that is not a linear.

    Returns:
        The same document.

    Raises:
        ToolError: an op reads bytes that are neither a linear's nor moved.
    """
    for node in nodes(document):
        main = node.get("main")
        ranges = main.get("external") if isinstance(main, dict) else None
        if not main or not ranges:
            continue
        name = node["name"]
        if name in formats:
            common = main["common"]
            shape = int(common["outputCount"]), int(common["inputCount"])
            main.update(declaration(formats[name], *shape, records[name]))
            if main["quanParameter"] is None:
                del main["quanParameter"]
        elif ranges[0] in moved:
            main["external"] = [moved[ranges[0]], *ranges[1:]]
        else:
            msg = f"{name} reads byte {ranges[0]} in {GRAPH_JSON_FILE} and not in {GRAPH_FILE}: the two come "
            msg += "from different exports; export the model again"
            raise ToolError(msg)
    return document


def rebuilt_bytes(folder: Path, graph: BinaryGraph) -> int:
    """Size of an exported folder's graph when qplan writes it at the export's own formats.

    Not the size of its ``llm.mnn``: the exporter's last step packs a graph a few percent differently.

    Args:
        folder: holds the graph's JSON form.
        graph: the same graph, as read from ``llm.mnn``.

    Raises:
        ToolError: the graph cannot be converted.
    """
    ops = graph.linears
    stay = {ranges[0]: ranges[0] for ranges in graph.other_ranges}
    document = patch_graph(
        read_document(folder / GRAPH_JSON_FILE),
        {op.name: op.format for op in ops},
        {op.name: op.record for op in ops},
        stay,
    )
    with temporary_folder("graph") as work:
        source, target = Path(work) / GRAPH_JSON_FILE, Path(work) / GRAPH_FILE
        source.write_text(json.dumps(document), encoding="utf-8")
        json_to_graph(source, target)
        return target.stat().st_size
