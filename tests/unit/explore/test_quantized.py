"""The call of a notebook: what it refuses, what it tells, and what it returns."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import qplan
from qplan.errors import InputError
from qplan.explore import Quantized, open_run, told
from qplan.jobs.progress import Pace
from qplan.settings import StageProgress


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"budget": "int44"}, "'int44'"),
        ({"effort": "much"}, "effort 'much' is unknown; use one of auto, quick"),
        ({"lang": "fr"}, "language 'fr' is unknown; use one of en, zh"),
        ({"target": "toaster"}, "'toaster'"),
        ({"max_memory": "much"}, "--max-memory 'much'"),
        ({"max_context": 1}, "--max-context 1: must be at least 2"),
        ({}, "./M is not a folder"),
    ],
)
def test_a_wrong_word_is_an_exception(given: dict[str, str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        qplan.quantize("./M", **given)  # type: ignore[arg-type]


def test_importing_it_imports_nothing_heavy() -> None:
    script = """
import sys, qplan
qplan.quantize
assert not {"torch", "transformers", "MNN", "scipy", "matplotlib", "typer", "rich"} & set(sys.modules)
try:
    qplan.quantize("./M")
except qplan.errors.InputError as error:
    print(error)
assert "torch" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert "./M is not a folder" in done.stdout, done.stderr


def test_what_is_returned_is_a_table_wherever_it_is_shown(saved: Path) -> None:
    made = Quantized(Path("tiny-int8-MNN"), open_run(saved), "int8")
    for shown in (repr(made), made._repr_html_(), made._repr_markdown_()):
        for words in ("tiny-int8-MNN", "KL to FP32", "uniform int8", "report.html", str(saved)):
            assert words in shown
    assert next(iter(made.losses)) == "plan"
    assert made.losses["plan"] == made.run.plan("int8").measured.kl_nats  # type: ignore[union-attr]
    assert set(made.verification["model"]) == set(made.losses)
    assert made.report == saved / "int8" / "report.html"


def test_outside_of_notebooks_lines_go_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert not told.in_notebook()
    told.tell("a line")
    with told.bar("analyzing") as progress:
        assert isinstance(progress, StageProgress)
        progress(1, 2)
    assert capsys.readouterr() == ("", "a line\n")


def test_a_notebooks_line_changes_in_place_and_ends_with_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []
    ticks: Iterator[float] = iter(range(100))
    monkeypatch.setattr(told.time, "monotonic", lambda: next(ticks))  # type: ignore[attr-defined]
    cell = told.WorkCell("1 of 2, analyzing", Pace(lambda: 0.0), lines.append)
    cell.stage("stage 1 of 4, loading")
    cell(1, 4)
    cell.end()
    assert lines[0] == "1 of 2, analyzing"
    assert lines[1] == "1 of 2, analyzing, stage 1 of 4, loading"
    assert lines[2].startswith("1 of 2, analyzing, stage 1 of 4, loading: 25 % of all, ")
    assert lines[3].startswith("1 of 2, analyzing: ")
