"""MNN's converter between ``llm.mnn`` and JSON, in a child process; its files are checked, not what it prints."""

from __future__ import annotations

import json
from pathlib import Path

from qplan.artifact import temporary_folder
from qplan.errors import InputError, ToolError
from qplan.mnn.child import run_child


def graph_to_json(graph: Path, target: Path, *, timeout_s: float = 600) -> None:
    """Write the JSON form of ``llm.mnn``.

    Raises:
        InputError: no such graph.
        ToolError: the converter failed, or its output is not JSON.
    """
    output = _convert("to-json", graph, target, timeout_s)
    try:
        json.loads(target.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        msg = f"the converter wrote no readable JSON for {graph}: {error}"
        raise ToolError(msg, tail=output[-2000:]) from None


def json_to_graph(source: Path, target: Path, *, timeout_s: float = 600) -> None:
    """Write ``llm.mnn`` from its JSON form, and have the engine read it.

    Raises:
        InputError: no such file.
        ToolError: the converter failed, or the engine cannot read what it made.
    """
    output = _convert("to-mnn", source, target, timeout_s)
    if not target.is_file() or target.stat().st_size == 0:
        msg = f"the converter wrote no graph for {source}, whatever it printed"
        raise ToolError(msg, tail=output[-2000:])


def _convert(direction: str, source: Path, target: Path, timeout_s: float) -> str:
    if not source.is_file():
        msg = f"{source} does not exist"
        raise InputError(msg)
    target.unlink(missing_ok=True)
    # the converter writes a scratch file with a fixed name into its working folder
    with temporary_folder("convert") as work:
        return run_child(
            "graph/converter_child.py",
            [direction, str(source.resolve()), str(target.resolve())],
            what=f"MNN's converter failed on {source}",
            cwd=work,
            timeout_s=timeout_s,
        )
