"""Limits on the loss are held by whole models, whatever single losses promise; on a tiny model that is really run."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest

from qplan.choosing.context import PlanningContext
from qplan.choosing.loss_limits import choose_requested, whole_loss
from qplan.choosing.request import Increase, PlanRequest
from qplan.cost.file_bytes import estimate_fixed
from qplan.errors import InfeasibleError
from qplan.formats import Formats, parse_formats
from qplan.model.load import LoadedModel
from qplan.rounding.rounder import Rounder
from qplan.run.calibration import CalibrationSet
from qplan.run.folder import RunFolder
from qplan.run.plan import Plan
from qplan.run.table import SensitivityTable
from qplan.sensitivity.analysis import open_analysis
from qplan.sensitivity.measured import measure
from qplan.uniform import uniform_formats


@pytest.fixture(scope="module")
def measured(qwen2: LoadedModel, calibration: CalibrationSet) -> SensitivityTable:
    """Every format of every tensor, measured under memory normal."""
    formats = parse_formats("fp16,int8,int4")
    with open_analysis(qwen2, calibration, formats, "normal", batch_size=3) as analysis:
        measure(analysis)
        rows = [row for n, f, m in analysis.entries() for row in analysis.rows((n, f.name, m), "measured")]
        return analysis.table("measured", rows)


class Heard(list[str]):
    """Lines about each step."""

    def rounds(self) -> int:
        """Times that a plan was solved again."""
        return sum("solving again under a lower limit" in line for line in self)


def context_of(
    table: SensitivityTable, model: LoadedModel, calibration: CalibrationSet
) -> tuple[PlanningContext, Heard]:
    heard, rounder = Heard(), Rounder(model)
    fixed = estimate_fixed(table.model)
    return PlanningContext(table, fixed, rounder, rounder, calibration.heldout, heard.append), heard


def smallest(context: PlanningContext, *, max_kl: float | None = None, increase: str | None = None) -> Plan:
    limit = None if increase is None else Increase.parse(increase)
    wanted = PlanRequest(budgets=(), objective="smallest", max_kl=max_kl, max_ppl_increase=limit)
    return choose_requested(context, wanted, RunFolder(Path("none")))


def nats(context: PlanningContext, formats: Formats) -> float:
    return context.whole({"": formats})[""].kl_nats


def test_a_whole_loss_is_that_of_the_model_with_everything_stored(
    measured: SensitivityTable, qwen2: LoadedModel, calibration: CalibrationSet
) -> None:
    context, _ = context_of(measured, qwen2, calibration)
    formats = uniform_formats(measured.model, 4)
    found = context.whole({"fp32": {}, "int4": formats})
    loss = whole_loss(context, formats)
    assert loss.kl_nats == found["int4"].kl_nats == nats(context, formats)
    assert loss.nll_nats == pytest.approx(found["int4"].nll_nats - found["fp32"].nll_nats)
    assert loss.perplexity == pytest.approx(math.exp(found["int4"].nll_nats) - math.exp(found["fp32"].nll_nats))
    assert context.against(formats, uniform_formats(measured.model, 8))["normal"] > 1
    assert context.against(formats, formats) == {"normal": 1.0}


def test_the_smallest_plan_keeps_its_limit_and_a_tighter_one_is_larger(
    measured: SensitivityTable, qwen2: LoadedModel, calibration: CalibrationSet
) -> None:
    context, _ = context_of(measured, qwen2, calibration)
    low, high = (nats(context, uniform_formats(measured.model, bits)) for bits in (8, 4))
    limits = [high / 2, math.sqrt(low * high), 2 * low]
    plans = [smallest(context, max_kl=limit) for limit in limits]
    for plan, limit in zip(plans, limits, strict=True):
        assert nats(context, plan.formats) <= limit
        assert plan.objective == "file size"
    sizes = [plan.files.total for plan in plans]
    assert sizes == sorted(sizes)
    assert len(set(sizes)) == 3


def test_losses_that_promise_too_much_are_found_out(
    measured: SensitivityTable, qwen2: LoadedModel, calibration: CalibrationSet
) -> None:
    flattering = tuple(replace(m, kl_nats=m.kl_nats / 20) for m in measured.measurements)
    context, heard = context_of(replace(measured, measurements=flattering), qwen2, calibration)
    low, high = (nats(context, uniform_formats(measured.model, bits)) for bits in (8, 4))
    limit = math.sqrt(low * high)
    plan = smallest(context, max_kl=limit)
    assert heard.rounds() >= 1
    assert nats(context, plan.formats) <= limit
    assert "held-out tokens" in str(plan.notes[-1])


def test_a_perplexity_that_may_not_grow_is_held_on_the_whole_model(
    measured: SensitivityTable, qwen2: LoadedModel, calibration: CalibrationSet
) -> None:
    context, _ = context_of(measured, qwen2, calibration)
    plan = smallest(context, increase="0.5%")
    before = context.whole({"fp32": {}})["fp32"].nll_nats
    assert whole_loss(context, plan.formats).nll_nats <= math.log1p(0.005)
    assert plan.files.total < context.fixed.total + sum(spec.weights * 2 for spec in measured.model.tensors)
    assert before > 0


def test_a_limit_that_nothing_keeps_names_the_nearest(
    measured: SensitivityTable, qwen2: LoadedModel, calibration: CalibrationSet
) -> None:
    context, _ = context_of(measured, qwen2, calibration)
    with pytest.raises(InfeasibleError, match="nearest"):
        smallest(context, max_kl=1e-12)
    # the table promises that anything goes, whole models never agree
    nothing = tuple(replace(m, kl_nats=m.kl_nats * 1e-9) for m in measured.measurements)
    hopeless, heard = context_of(replace(measured, measurements=nothing), qwen2, calibration)
    least = nats(hopeless, uniform_formats(measured.model, 16))
    with pytest.raises(InfeasibleError, match="nearest has KL"):
        smallest(hopeless, max_kl=least / 2)
    assert heard.rounds() == 5
