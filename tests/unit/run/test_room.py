"""What a run holds is known in one room, which needs no more than numpy."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.documented import ROOT

PACKAGE = ROOT / "qplan"
ROOM = PACKAGE / "run"

KINDS = {
    "qplan-baseline",
    "qplan-calibration",
    "qplan-device",
    "qplan-fold",
    "qplan-fold-draft",
    "qplan-frontier",
    "qplan-journal",
    "qplan-kv-cache",
    "qplan-moments",
    "qplan-plan",
    "qplan-report",
    "qplan-sensitivity",
    "qplan-skeleton",
    "qplan-times",
    "qplan-took",
    "qplan-token-losses",
    "qplan-verification",
}
"""Of every artifact of a run."""

FILES = (
    "calibration.json",
    "device.json",
    "fold.json",
    "frontier.json",
    "frontier.md",
    "frontier.png",
    "plan.json",
    "quant_config.json",
    "report.html",
    "report.json",
    "report.md",
    "sensitivity.journal.jsonl",
    "sensitivity.parquet",
    "times.json",
    "took.json",
    "token-losses.json",
    "verification.json",
)


OTHERS = {"quant_config.json": {PACKAGE / "model" / "quantized.py"}}
"""Files of other tools that happen to have the same name, and who looks for them."""


def texts() -> Iterator[tuple[Path, str]]:
    """Every text constant of the package, with its module."""
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield path, node.value


def test_every_kind_stands_in_one_module_of_the_room() -> None:
    whole = {kind: re.compile(rf"(?<![\w-]){kind}(?![\w-])") for kind in KINDS}
    sources = {path: path.read_text(encoding="utf-8") for path in sorted(PACKAGE.rglob("*.py"))}
    for kind, pattern in whole.items():
        found = [path for path, source in sources.items() if pattern.search(source)]
        assert [path.parent for path in found] == [ROOM], f"{kind} stands in {found}"


def test_these_are_all_kinds_of_the_room() -> None:
    named = {value for path, value in texts() if path.parent == ROOM and re.fullmatch(r"qplan-[a-z-]+", value)}
    assert named - {"qplan-runs"} == KINDS


@pytest.mark.parametrize("name", FILES)
def test_every_files_name_stands_once(name: str) -> None:
    found = [path for path, value in texts() if value == name and path not in OTHERS.get(name, ())]
    assert [path.parent for path in found] == [ROOM], f"{name} stands in {found}"


def test_the_room_is_entered_without_torch_or_a_solver() -> None:
    modules = [f"qplan.run.{path.stem}" for path in sorted(ROOM.glob("*.py")) if path.stem != "__init__"]
    assert len(modules) > 15
    code = (
        f"import importlib, sys\nfor name in {modules!r}: importlib.import_module(name)\n"
        "heavy = ('torch', 'MNN', 'transformers', 'scipy', 'pandas', 'matplotlib', 'datasets')\n"
        "print([name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout == "[]\n"
