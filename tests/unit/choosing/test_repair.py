"""Promotions and demotions by what whole models lose; the whole models are invented."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from qplan.choosing import context
from qplan.choosing.context import PlanningContext
from qplan.choosing.repair import REPAIRED, repair
from qplan.cost.file_bytes import estimate_fixed
from qplan.planner.budget import Budget
from qplan.planner.planning import make_plan
from qplan.rounding.rounder import Rounder
from qplan.run.plan import Plan
from tests.support.whole_models import ROWS, Whole


def run(
    monkeypatch: pytest.MonkeyPatch, whole: Whole, evaluations: int = 48, budget: str = "6bpw"
) -> tuple[Plan, Plan]:
    monkeypatch.setattr(context, "variant_losses", whole.variant_losses)
    fixed = estimate_fixed(whole.table.model)
    plan = make_plan(whole.table, Budget.parse(budget), fixed)
    loaded: Any = SimpleNamespace(card=whole.table.model)
    rounder = Rounder(loaded)
    judges = PlanningContext(whole.table, fixed, rounder, rounder, ROWS, lambda _: None)
    return plan, repair(plan, judges, evaluations=evaluations)


def test_moves_that_pay_on_whole_models_are_taken_at_the_same_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Whole({"q_proj": 6.0, "up_proj": 0.3})
    plan, better = run(monkeypatch, whole)
    assert whole.loss(better.formats, whole.factors) < 0.9 * whole.loss(plan.formats, whole.factors)
    assert better.files.total <= plan.budget_bytes
    assert better.solver.status == REPAIRED
    assert better.predicted_nats > plan.predicted_nats
    assert better.solver.bound_nats == plan.solver.bound_nats
    assert whole.measured <= 48 + 2
    assert any("promoted or demoted" in str(note) for note in better.notes)


def test_a_plan_that_is_already_best_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    plan, better = run(monkeypatch, Whole({}))
    assert better is plan


def test_what_only_half_of_the_rows_believe_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    plan, better = run(monkeypatch, Whole({"q_proj": 6.0, "up_proj": 0.3}, confirming={"q_proj": 0.1}))
    assert better is plan


@pytest.mark.parametrize("seed", range(12))
def test_noise_promotes_and_demotes_nothing(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    # what activations lose is common to all plans, and hides what moves change
    whole = Whole({}, noise=seed, common=1.0)
    plan, better = run(monkeypatch, whole)
    assert better is plan


def test_what_is_beyond_doubt_is_taken_in_spite_of_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Whole({"q_proj": 60.0, "up_proj": 0.03}, noise=1)
    plan, better = run(monkeypatch, whole)
    assert better is not plan
    assert whole.loss(better.formats, whole.factors) < whole.loss(plan.formats, whole.factors)


def test_a_plan_that_no_budget_binds_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Whole({"q_proj": 6.0}, noise=0)
    plan, better = run(monkeypatch, whole, budget="12MB")
    assert better is plan
    assert whole.measured == 0


def test_no_evaluations_no_repair(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Whole({"q_proj": 6.0})
    plan, better = run(monkeypatch, whole, evaluations=1)
    assert better is plan
    assert whole.measured == 1


def test_where_no_move_is_possible_the_plan_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qplan.choosing.repair.nearest_moves", lambda *_: ())
    whole = Whole({"q_proj": 6.0})
    plan, better = run(monkeypatch, whole)
    assert better == plan
    assert whole.measured == 1
