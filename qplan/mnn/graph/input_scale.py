"""Multiplies the graph's embedded input channel by channel, to undo in lookups what folding did to a tied head.

One ``BinaryOp`` and one ``Const`` at the head of the graph: ``hidden`` multiplications per token, ``4 hidden`` bytes.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from qplan.artifact import write_text
from qplan.errors import ToolError
from qplan.mnn.files import GRAPH_FILE, GRAPH_JSON_FILE
from qplan.mnn.graph.converter import json_to_graph
from qplan.mnn.graph.json_graph import Node, nodes, read_document

_INPUT, _CONST, _OP = "input_ids", "/embedding_scale", "/embedding_scale/Mul"
"""The engine looks tokens up itself and hands the rows to the graph under the name of their ids."""


def scale_input(folder: Path, scale: NDArray[np.float32]) -> None:
    """Multiply an exported folder's embedded input by ``scale [hidden]``: rewrites its graph, in both forms.

    Raises:
        InputError: the folder holds no graph.
        ToolError: the graph has no such input, of another width, or cannot be converted.
    """
    document = read_document(folder / GRAPH_JSON_FILE)
    insert_scale(document, scale)
    write_text(folder / GRAPH_JSON_FILE, json.dumps(document))
    json_to_graph(folder / GRAPH_JSON_FILE, folder / GRAPH_FILE)


def insert_scale(document: Node, scale: NDArray[np.float32]) -> None:
    """Put the multiplication into the JSON form of a graph, in place.

    Raises:
        ToolError: no input of this width.
    """
    inputs = [node for node in document["oplists"] if node["type"] == "Input" and node["name"] == _INPUT]
    width = inputs[0]["main"]["dims"][-1] if len(inputs) == 1 else None
    if width != len(scale):
        msg = (
            f"the graph's embedded input {_INPUT!r} has a width of {width}, expected {len(scale)}: qplan does not "
            "know this exporter; use --fold off"
        )
        raise ToolError(msg)
    (embedded,) = inputs[0]["outputIndexes"]
    constant, scaled = len(document["tensorName"]), len(document["tensorName"]) + 1
    for node in nodes(document):
        if embedded in node.get("inputIndexes", ()) and node in document["oplists"]:
            node["inputIndexes"] = [scaled if index == embedded else index for index in node["inputIndexes"]]
    document["tensorName"] += [_CONST, _OP]
    blob = {
        "dims": [len(scale)],
        "dataFormat": "NCHW",
        "dataType": "DT_FLOAT",
        "float32s": [float(value) for value in scale],
    }
    binary = {"opType": "MUL", "T": "DT_FLOAT", "activationType": 0}
    layout = {"defaultDimentionFormat": "NHWC"}
    # inputs of the graph come first
    place = 1 + max(index for index, node in enumerate(document["oplists"]) if node["type"] == "Input")
    document["oplists"][place:place] = [
        {"name": _CONST, "type": "Const", "main_type": "Blob", "main": blob, "outputIndexes": [constant], **layout},
        {
            "name": _OP,
            "type": "BinaryOp",
            "main_type": "BinaryOp",
            "main": binary,
            "inputIndexes": [embedded, constant],
            "outputIndexes": [scaled],
            **layout,
        },
    ]
