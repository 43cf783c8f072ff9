"""Modules and files that prose names are there: pages, reports, notebooks and docstrings follow when code moves."""

from __future__ import annotations

import ast
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.documented import DOCS, ROOT

PAGES = [
    # CONTRIBUTING.md has placeholders: test_contributing.py holds it
    *sorted(set(ROOT.glob("*.md")) - {ROOT / "CONTRIBUTING.md"}),
    ROOT / "mkdocs.yml",
    *sorted(DOCS.rglob("*.md")),
    *sorted(ROOT.glob("reports/**/*.md")),
    *sorted(ROOT.glob("notebooks/*.ipynb")),
]
CODE = [path for folder in ("qplan", "reports", "tests") for path in sorted((ROOT / folder).rglob("*.py"))]

_DOTTED = re.compile(r"(?<![\w./-])(?:qplan|reports|tests)(?:\.[A-Za-z_]\w*)+")
_PATH = re.compile(r"(?<![\w./-])(?:qplan|reports|tests)/[\w./-]*\w")


def docstrings(source: str) -> str:
    """The docstrings of modules, classes, functions and fields, which are the strings that stand alone."""
    return "\n".join(
        node.value.value
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
    )


def unknown(prose: str) -> Iterator[str]:
    """The dotted names and paths in prose that lead nowhere."""
    for name in sorted(set(_DOTTED.findall(prose))):
        try:
            pkgutil.resolve_name(name)
        except (ImportError, AttributeError):
            yield name
    for path in sorted(set(_PATH.findall(prose))):
        if not (ROOT / path).exists():
            yield path


def test_names_that_lead_nowhere_are_found() -> None:
    prose = (
        "`qplan.errors.QplanError`, `qplan.hall.Plan`, qplan.errors.Lost, qplan/hall/plans.py and `qplan/errors.py`."
    )
    assert list(unknown(prose)) == ["qplan.errors.Lost", "qplan.hall.Plan", "qplan/hall/plans.py"]
    assert docstrings('"""A."""\nx = "no"\nclass C:\n    y: int\n    """B."""\n') == "A.\nB."


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_what_a_page_names_exists(path: Path) -> None:
    assert not list(unknown(path.read_text(encoding="utf-8")))


def test_what_docstrings_name_exists() -> None:
    found = {path.relative_to(ROOT): list(unknown(docstrings(path.read_text(encoding="utf-8")))) for path in CODE}
    assert not {path: names for path, names in found.items() if names}
