"""The JSON form of a graph, which is edited and converted to write one; graphs are read from ``llm.mnn``."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from qplan.errors import InputError

Node = dict[str, Any]
"""One op."""


def read_document(path: Path) -> Node:
    """Read the JSON form of a graph.

    Raises:
        InputError: no such file, or not a graph.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        msg = f"{path} cannot be read as a graph: {error}; export the model again"
        raise InputError(msg) from None
    if not isinstance(document, dict) or "oplists" not in document:
        msg = f"{path} is not the JSON form of an MNN graph (no 'oplists'); export the model again"
        raise InputError(msg)
    return document


def nodes(document: Node) -> Iterator[Node]:
    """Every op of the main graph, then of the subgraphs (experts)."""
    yield from document["oplists"]
    for subgraph in document.get("subgraphs") or ():
        yield from subgraph["nodes"]
