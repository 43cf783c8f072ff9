"""Auto mode: measures what plans depend on, leads to the plans of measured mode, survives being killed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from qplan.cost.file_bytes import estimate_fixed
from qplan.formats import parse_formats
from qplan.jobs.additivity import measure_additivity
from qplan.jobs.auto import analyze_auto
from qplan.model.load import LoadedModel
from qplan.planner.budget import Budget
from qplan.planner.planning import make_plan
from qplan.run.calibration import CalibrationSet
from qplan.run.table import SensitivityTable
from qplan.sensitivity.analysis import open_analysis
from qplan.sensitivity.joint import joint_losses
from tests.support.whole_tables import measured_table

FORMATS = parse_formats("fp16,int8,int6,int4,int3")


def _auto(loaded: LoadedModel, calibration: CalibrationSet, journal: Path | None = None) -> SensitivityTable:
    with open_analysis(loaded, calibration, FORMATS, "low", journal=journal) as analysis:
        return analyze_auto(analysis, say=lambda _message: None)


@pytest.fixture(scope="module")
def table(qwen2: LoadedModel, calibration: CalibrationSet) -> SensitivityTable:
    return _auto(qwen2, calibration)


@pytest.mark.slow
def test_it_leads_where_measuring_everything_leads(
    table: SensitivityTable, qwen2: LoadedModel, calibration: CalibrationSet
) -> None:
    exact = measured_table(qwen2, calibration, FORMATS)
    assert table.conditions.mode == "auto"
    fixed, tokens = estimate_fixed(qwen2.card), torch.from_numpy(calibration.tokens)
    for budget in ("5bpw", "int8", "8bpw"):
        plans = {
            "auto": make_plan(table, Budget.parse(budget), fixed).formats,
            "exact": make_plan(exact, Budget.parse(budget), fixed).formats,
        }
        joint = joint_losses(qwen2, tokens, plans)
        assert joint["auto"].kl_nats < 1.1 * joint["exact"].kl_nats


def test_the_head_is_measured_and_the_savings_told(table: SensitivityTable) -> None:
    losses = table.losses("low")
    assert {loss.source for loss in losses["lm_head"].values()} == {"measured"}
    measured = [m for m in table.measurements if m.source == "measured"]
    share = len(measured) / len(table.measurements)
    assert 0 < share < 0.6
    entries = {(m.tensor, m.format, m.memory) for m in measured}
    assert f"{len(entries)} of " in str(table.notes[-1])
    assert f"saved {1 - share:.0%} of the measurements" in str(table.notes[-1])


@pytest.mark.slow
def test_an_interrupted_run_ends_in_the_same_table(
    table: SensitivityTable, qwen2: LoadedModel, calibration: CalibrationSet, tmp_path: Path
) -> None:
    whole = _auto(qwen2, calibration, tmp_path / "a")
    assert whole.sha256 == table.sha256
    lines = (tmp_path / "a").read_text().splitlines(keepends=True)
    for kept in (100, len(lines) - 30):
        (tmp_path / "b").write_text("".join(lines[:kept]))
        assert _auto(qwen2, calibration, tmp_path / "b").sha256 == whole.sha256


@pytest.mark.parametrize("name", ["qwen2", "llama"])
def test_additivity(tiny_models: dict[str, LoadedModel], calibration: CalibrationSet, name: str) -> None:
    loaded, tokens = tiny_models[name], torch.from_numpy(calibration.tokens)
    table = measure_additivity(measured_table(loaded, calibration, FORMATS), loaded, tokens)
    assert 3 <= len(table.joint) <= 5
    assert all(point.memory == "low" and 0.3 < point.ratio < 3 for point in table.joint)
    sums = [point.sum_nats for point in table.joint]
    assert sums == sorted(sums, reverse=True)
    for point in table.joint:
        assert table.predict_joint(point.sum_nats) == pytest.approx(point.joint_nats)
