"""A model that stops early: the head reads the residual stream before some layer, and the layers after that are dead.

Same weights, same file, one edge of the graph moved: shows on the real engine what a layer outputs.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

from qplan.artifact import new_folder
from qplan.errors import InputError
from qplan.mnn.files import GRAPH_FILE, GRAPH_JSON_FILE
from qplan.mnn.graph.converter import graph_to_json, json_to_graph
from qplan.mnn.graph.json_graph import Node, read_document

_BLOCK = re.compile(r"^/blocks\.(\d+)/")
_SLICE, _NORM = "StridedSlice", "LayerNorm"


def open_lens(model: Path, work: Path) -> Node:
    """The JSON form of a model's graph, for `look_after`.

    Raises:
        ToolError: the graph cannot be converted.
    """
    target = work / GRAPH_JSON_FILE
    graph_to_json(model / GRAPH_FILE, target)
    return read_document(target)


def look_after(model: Path, document: Node, layers: int, out: Path) -> Path:
    """Make a folder whose logits are those of the final norm and the head after the first ``layers`` layers.

    Args:
        model: a whole model; its other files are linked, not copied.
        document: the result of `open_lens`; not changed.
        layers: how many layers run, from 0.
        out: folder to make.

    Raises:
        InputError: the graph has no such layer, or is not laid out as llmexport does it.
        ToolError: the converter failed.
    """
    edited = json.loads(json.dumps(document))
    nodes: list[Node] = edited["oplists"]
    stream = _stream_before(nodes, layers)
    target = _head_input(nodes)
    target["inputIndexes"][0] = stream
    with new_folder(out, replace=True) as draft:
        source = draft.with_name(GRAPH_JSON_FILE)
        source.write_text(json.dumps(edited), encoding="utf-8")
        json_to_graph(source, draft / GRAPH_FILE)
        for path in model.iterdir():
            if path.is_file() and path.name not in {GRAPH_FILE, GRAPH_JSON_FILE}:
                try:
                    os.link(path, draft / path.name)
                except OSError:  # another file system
                    shutil.copyfile(path, draft / path.name)
    return out


def _stream_before(nodes: list[Node], layer: int) -> int:
    """Tensor that a layer's first norm reads."""
    for node in nodes:
        match = _BLOCK.match(node["name"])
        if node["type"] == _NORM and match is not None and int(match[1]) == layer:
            return int(node["inputIndexes"][0])
    msg = f"the graph has no norm of layer {layer}; it was not made by llmexport"
    raise InputError(msg)


def _head_input(nodes: list[Node]) -> Node:
    """The op that takes the residual stream to the head: the last norm, or the slice of positions before it."""
    norms = [node for node in nodes if node["type"] == _NORM and _BLOCK.match(node["name"]) is None]
    if not norms:
        msg = "the graph has no final norm; it was not made by llmexport"
        raise InputError(msg)
    last = norms[-1]
    for node in nodes:
        if node["type"] == _SLICE and last["inputIndexes"][0] in node.get("outputIndexes", ()):
            return node
    return last
