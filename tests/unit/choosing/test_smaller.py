"""A plan never loses more than a smaller one of its run; the whole models are invented."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from qplan.choosing import context
from qplan.choosing.context import PlanningContext
from qplan.choosing.smaller import no_worse_than_smaller
from qplan.cost.file_bytes import estimate_fixed
from qplan.planner.budget import Budget
from qplan.planner.planning import make_plan
from qplan.planner.rules import Rules
from qplan.rounding.rounder import Rounder
from qplan.run.folder import RunFolder
from qplan.run.plan import Plan
from tests.support.whole_models import ROWS, Whole


def setting(monkeypatch: pytest.MonkeyPatch, whole: Whole, rules: Rules | None = None) -> PlanningContext:
    monkeypatch.setattr(context, "variant_losses", whole.variant_losses)
    loaded: Any = SimpleNamespace(card=whole.table.model)
    rounder = Rounder(loaded)
    fixed = estimate_fixed(whole.table.model)
    return PlanningContext(whole.table, fixed, rounder, rounder, ROWS, lambda _: None, rules or Rules())


def solved(judges: PlanningContext, budget: str) -> Plan:
    return make_plan(judges.table, Budget.parse(budget), judges.fixed, rules=judges.rules)


def keep(plan: Plan, run: RunFolder) -> None:
    folder = run.budget_for(plan.budget, None)
    folder.mkdir(parents=True)
    plan.write(folder / "plan.json")


def test_the_formats_of_a_smaller_plan_that_loses_less_are_taken(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # down projections lose more in 8 bits than in 4 once all are together
    whole, run = Whole({}), RunFolder(tmp_path)
    judges = setting(monkeypatch, whole)
    smaller, larger = solved(judges, "6bpw"), solved(judges, "8bpw")
    worse = dict(larger.formats)
    monkeypatch.setattr(
        whole, "loss", lambda formats, _factors: 2e-3 if dict(formats) == worse else 1e-3 + len(set(formats)) * 1e-9
    )
    keep(smaller, run)
    keep(larger, run)
    found = no_worse_than_smaller(larger, judges, run)
    assert found.formats == smaller.formats
    assert found.files == smaller.files
    assert found.budget_bytes == larger.budget_bytes
    assert [note.code for note in found.notes][-1] == "smaller-plan-taken"
    assert "6bpw" in str(found.notes[-1])
    assert no_worse_than_smaller(smaller, judges, run) is smaller


def test_a_larger_plan_that_loses_less_stays(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    whole, run = Whole({}), RunFolder(tmp_path)
    judges = setting(monkeypatch, whole)
    smaller, larger = solved(judges, "6bpw"), solved(judges, "8bpw")
    keep(smaller, run)
    assert no_worse_than_smaller(larger, judges, run) is larger
    # half of the rows leave no doubt
    assert whole.measured == 2


def test_a_smaller_plan_under_other_rules_is_none_for_these(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    whole, run = Whole({}), RunFolder(tmp_path)
    keep(solved(setting(monkeypatch, whole), "6bpw"), run)
    judges = setting(monkeypatch, whole, Rules.parse(min_bits={"*.0.mlp.up_proj": 8}))
    larger = solved(judges, "8bpw")
    monkeypatch.setattr(whole, "loss", lambda formats, _factors: 2e-3 if dict(formats) == larger.formats else 1e-3)
    assert no_worse_than_smaller(larger, judges, run) is larger
    assert whole.measured == 0
