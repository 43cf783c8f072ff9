"""What git holds of the notebooks: no outputs, no places of a machine, and copies that are of these very cells."""

from __future__ import annotations

import json
import re
from pathlib import Path

import nbformat
import pytest

from notebooks.render import NOTEBOOKS, OUT, linked

MOST_PICTURE_BYTES = 1_500_000
PLACES = re.compile(r"/(home|root|tmp|work|Users|usr)/|[A-Z]:\\|https?://(?!github\.com)")


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def path(request: pytest.FixtureRequest) -> Path:
    found: Path = request.param
    return found


def test_there_are_three() -> None:
    assert [path.stem[:2] for path in NOTEBOOKS] == ["01", "02", "03"]


def test_notebooks_are_stripped_and_valid(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert set(notebook.metadata) <= {"kernelspec", "language_info"}
    assert [cell.id for cell in notebook.cells] == [
        f"{path.stem[:2]}-{index:02d}" for index in range(len(notebook.cells))
    ]
    for cell in notebook.cells:
        assert not cell.metadata
        if cell.cell_type == "code":
            assert cell.outputs == []
            assert cell.execution_count is None
    assert json.dumps(json.loads(path.read_text()), indent=1, ensure_ascii=False) + "\n" == path.read_text()
    assert not PLACES.search(path.read_text())


def test_copies_hold_the_same_cells(path: Path) -> None:
    page, place = (OUT / f"{path.stem}.md").read_text(encoding="utf-8"), 0
    cells = nbformat.read(path, as_version=4).cells
    for cell in cells:
        source = linked(cell.source) if cell.cell_type == "markdown" else f"```python\n{cell.source}\n```"
        found = page.find(source, place)
        assert found >= 0, f"docs/notebooks/{path.stem}.md is stale at: {source[:60]!r}; run 'make notebooks'"
        place = found + len(source)
    assert page.count("```python\n") == sum(cell.cell_type == "code" for cell in cells)


def test_pictures_are_there_and_small(path: Path) -> None:
    page = (OUT / f"{path.stem}.md").read_text(encoding="utf-8")
    assert not PLACES.search(page)
    named = re.findall(r"^!\[.+\]\((.+\.png)\)$", page, re.MULTILINE)
    assert len(named) >= 3
    assert sorted(named) == sorted(picture.name for picture in OUT.glob(f"{path.stem}-*.png"))
    assert sum(picture.stat().st_size for picture in OUT.glob("*.png")) < MOST_PICTURE_BYTES
