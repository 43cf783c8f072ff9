"""Values that the shell completes: read from file names alone, since a shell waits for them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import qplan
from qplan.tensors import short_name

_RUNS = Path("qplan-runs")
_PLAN = "plan.json"
_BUDGETS = {
    "int8": "as large as MNN's uniform export",
    "int4": "as large as MNN's uniform export",
    "fp16": "as large as MNN's uniform export",
    "4.5bpw": "bits per weight",
    "300MB": "bytes of the files that ship",
    "60%": "of fp16",
}


def budgets(incomplete: str) -> list[tuple[str, str]]:
    """Budgets of every kind, each with what it means; after a comma, the next of several."""
    before, comma, begun = incomplete.rpartition(",")
    return [(before + comma + name, about) for name, about in _BUDGETS.items() if name.startswith(begun)]


def runs(incomplete: str) -> list[str]:
    """Run folders under ``qplan-runs/``."""
    return _starting(incomplete, (str(path.parent) for path in _RUNS.glob("*/sensitivity.parquet")))


def plans(incomplete: str) -> list[str]:
    """Budgets of the latest run, then the plan files of all runs."""
    found = [path.parent.name for path in _plans_of_latest()]
    return _starting(incomplete, [*found, *(str(path) for path in sorted(_RUNS.glob(f"*/*/{_PLAN}")))])


def tensors(incomplete: str) -> list[str]:
    """Short names of the latest plan's tensors, as patterns understand them."""
    newest = max(_plans_of_latest(), key=lambda path: path.stat().st_mtime, default=None)
    if newest is None:
        return []
    try:
        names = [str(tensor["name"]) for tensor in json.loads(newest.read_text(encoding="utf-8"))["tensors"]]
    except (OSError, ValueError, KeyError, TypeError):
        return []  # a broken plan is told by the command, not by a key press
    return _starting(incomplete, map(short_name, names))


def models(incomplete: str) -> list[str]:
    """Folders here and below that hold a Hugging Face model, and folders on the way to one."""
    typed = Path(incomplete)
    parent = typed if incomplete.endswith("/") or not incomplete else typed.parent
    folders = (path for path in sorted(parent.glob("*/")) if not path.name.startswith("."))
    return _starting(incomplete, (str(path) if (path / "config.json").is_file() else f"{path}/" for path in folders))


def calibrations(incomplete: str) -> list[str]:
    """Calibration sets that come with qplan."""
    package = Path(qplan.__file__).parent
    found = {path.parent.name for root in (package, package.parent) for path in root.glob("calib/*/manifest.json")}
    return _starting(incomplete, sorted(found))


def targets(incomplete: str) -> list[str]:
    """Targets that costs are known of."""
    folder = Path(qplan.__file__).parent / "cost" / "targets"
    return _starting(incomplete, sorted(path.stem for path in folder.glob("*.json")))


def _plans_of_latest() -> Iterator[Path]:
    tables = sorted(_RUNS.glob("*/sensitivity.parquet"), key=lambda path: path.stat().st_mtime)
    yield from sorted(tables[-1].parent.glob(f"*/{_PLAN}")) if tables else ()


def _starting(incomplete: str, found: Iterable[str]) -> list[str]:
    return [value for value in found if value.startswith(incomplete)]
