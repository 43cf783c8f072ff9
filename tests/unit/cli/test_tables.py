"""Tables in a terminal of 80 columns."""

from __future__ import annotations

from dataclasses import replace
from io import StringIO

from qplan.cli.console import Terminal
from qplan.cli.tables import verification_table
from qplan.run.verification import BuiltModel
from tests.support.invented_run import small_run


def _larger(model: BuiltModel) -> BuiltModel:
    """A model of 12 GB that cannot guess its text at all, under both options."""
    runs = tuple(
        replace(run, accuracy=replace(run.accuracy, perplexity=557_669.66), dynamic_option=option)
        for run in model.runs
        for option in (0, 2)
    )
    files = replace(model.files, weight=12_345_678_901)
    other = None if model.speed is None else replace(model.speed, dynamic_option=2)
    return replace(model, runs=runs, files=files, other_speed=other)


def test_large_models_and_perplexities_fit() -> None:
    verification = small_run().verification
    shown = Terminal(file=StringIO(), width=80, color_system=None)
    shown.print(verification_table(replace(verification, models=tuple(map(_larger, verification.models)))))
    text = shown.file.getvalue()  # type: ignore[attr-defined]
    assert "\N{HORIZONTAL ELLIPSIS}" not in text
    assert all(len(line) <= 80 for line in text.splitlines())
    rows = [line for line in text.splitlines() if line.startswith((" plan", " int8"))]
    assert len(rows) == 2
    for row in rows:
        assert "12,345.72" in row
        assert "557,700" in row
    assert text.count(" option 2") == len(verification.models)
