"""Tests stand where their subject stands, and share what they share in tests/support."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
PACKAGE = TESTS.parent / "qplan"
UNIT = TESTS / "unit"

SUBJECTS = {
    "docs": "the documentation, held to the program",
    "reports": "pages and scripts of reports/",
    "test_layout.py": "this",
    "test_notebooks.py": "what git holds of notebooks/",
    "cli/test_commands.py": "every command: help, errors, completion",
    "cli/test_encodings.py": "terminals that are not UTF-8",
    "verify/test_gate.py": "the gate before a plan",
    "cli/test_doors.py": "wrong words, refused before anything is loaded",
    "demo/test_model.py": "the embedded model itself",
    "test_golden.py": "what an earlier qplan left",
    "test_distributions.py": "wheel and sdist",
    "explore/test_figures.py": "every figure of the room",
    "explore/test_light.py": "what the room must not import",
    "model/test_real_folders.py": "what people's tools leave, through the whole room",
    "mnn/graph/test_readers.py": "every reader of MNN's files, on damaged ones",
    "mnn/test_settings.py": "small values at the edge of MNN",
    "planner/test_embedding.py": "an untied embedding, through the whole room",
    "planner/test_views.py": "what is shown of a plan",
    "run/test_room.py": "names, kinds and imports of the whole room",
    "report/test_browser.py": "the page in Chromium",
    "sensitivity/test_dynamic_option.py": "block scales, through the whole room",
    "sensitivity/test_experts.py": "mixtures of experts, through the whole room",
}
"""Test files, and folders of them, that are of something else than one module, and what that is."""


def unit_tests() -> list[str]:
    """Paths below tests/unit."""
    return sorted(path.relative_to(UNIT).as_posix() for path in UNIT.rglob("test_*.py"))


def subject(path: str) -> str | None:
    """The entry of `SUBJECTS` for a test file, if it has one."""
    return next((name for name in SUBJECTS if path == name or path.startswith(f"{name}/")), None)


def module_of(path: str) -> Path:
    """The module or room that a test file is named after."""
    named = PACKAGE / Path(path).parent / Path(path).stem.removeprefix("test_")
    return named if named.is_dir() else named.with_suffix(".py")


@pytest.mark.parametrize("path", unit_tests())
def test_a_unit_test_is_named_after_what_it_tests(path: str) -> None:
    if subject(path) is None:
        assert module_of(path).exists(), f"there is no {module_of(path).relative_to(PACKAGE.parent)} to test"
    else:
        assert not module_of(path).exists(), f"{path} has a module now: it needs no entry in SUBJECTS"


def test_no_subject_is_stale() -> None:
    assert set(SUBJECTS) == {subject(path) for path in unit_tests()} - {None}


def imported(path: Path) -> set[str]:
    """Names of the modules that a file imports."""
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    plain = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    return plain | {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}


@pytest.mark.parametrize("path", sorted(TESTS.rglob("*.py")), ids=lambda path: path.relative_to(TESTS).as_posix())
def test_what_tests_share_stands_in_support(path: Path) -> None:
    ours = {name for name in imported(path) if name == "tests" or name.startswith("tests.")}
    assert all(name == "tests.support" or name.startswith("tests.support.") for name in ours), ours


def test_the_product_imports_no_tests_and_no_reports() -> None:
    for path in PACKAGE.rglob("*.py"):
        assert not [name for name in imported(path) if name.split(".")[0] in {"tests", "reports", "notebooks"}], path
