"""The default effort: the quick one, then measurements within a budget of passes."""

from __future__ import annotations

from pathlib import Path

import pytest

from qplan.folding.analyzed import load_analyzed
from qplan.formats import Formats, QuantFormat, parse_formats
from qplan.jobs import pivotal
from qplan.jobs.analyze import run_analyze
from qplan.jobs.options import AnalyzeOptions
from qplan.rounding.run_rounder import run_rounder
from qplan.run.calibration import CalibrationSet
from qplan.run.folder import RunFolder
from qplan.run.table import SensitivityTable
from qplan.settings import Effort
from tests.support.tiny_models import words

PASSES = 20.0
"""A pass over the few tokens of a test is short beside the time to round a tensor."""


@pytest.fixture(autouse=True)
def passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Passes enough to measure a few losses."""
    monkeypatch.setattr("qplan.jobs.pivotal.MEASURED_PASSES", PASSES)


def _analyze(
    model: Path, folder: Path, run: RunFolder, effort: Effort = "default", said: list[str] | None = None
) -> SensitivityTable:
    text = folder / "text.txt"
    if not text.is_file():
        text.write_text(words(3000, seed=1))
    options = AnalyzeOptions(
        model=str(model),
        calib=str(text),
        effort=effort,
        samples=6,
        seq_len=64,
        batch_size=4,
        fit_tokens=768,
        formats=parse_formats("int8,int4,int3"),
    )
    told = [] if said is None else said
    return run_analyze(options, run, told.append, lambda _done, _total: None)


def test_it_goes_on_from_the_quick_effort_and_from_a_kill(
    model_folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, run, told = model_folders["qwen2"], RunFolder(tmp_path / "run"), [""]
    whole = _analyze(model, tmp_path, RunFolder(tmp_path / "whole"))
    quick = _analyze(model, tmp_path, run, "quick")
    monkeypatch.setattr("qplan.jobs.one_pass._passes", lambda *_: pytest.fail("gone there and back once more"))
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr("qplan.jobs.pivotal.measure", _stop)
        _analyze(model, tmp_path, run)
    table = _analyze(model, tmp_path, run, said=told)
    assert table.sha256 == whole.sha256
    assert table.joint == whole.joint
    assert any(line.startswith(f"measurements: at most {PASSES:g} passes") for line in told)
    assert (quick.conditions.mode, table.conditions.mode) == ("gradient", "auto")
    assert table.model == quick.model
    assert not quick.joint
    assert all(0.3 < point.ratio < 3 for point in table.joint)
    (note,) = [note for note in table.notes if note.code == "measured-within-passes"]
    measured = {(m.tensor, m.format, m.memory) for m in table.measurements if m.source == "measured"}
    assert note.values["measured"] == len(measured) > 0
    passes = note.values["passes"]
    assert isinstance(passes, float)
    assert 0 < passes <= PASSES
    # what was measured was rounded whole, and is there for emit
    folded = load_analyzed(run, table.model, lambda _line: None).loaded
    rounder = run_rounder(run, folded, CalibrationSet.read(run.calibration), "auto")
    assert rounder.cache is not None
    assert all(rounder.cache.holds(name, QuantFormat.parse(fmt)) for name, fmt, _ in measured)


def _stop(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize(("most", "taken"), [(9, [0, 1, 2, 3, 4]), (3, [0, 2, 4]), (1, [2]), (0, []), (-1, [])])
def test_a_short_budget_spreads_fewer_plans_over_the_frontier(most: int, taken: list[int]) -> None:
    plans: list[Formats] = [{"a": QuantFormat(bits)} for bits in (2, 3, 4, 5, 6)]
    assert pivotal._spread(plans, most) == [plans[place] for place in taken]
