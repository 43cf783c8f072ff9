from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from qplan.choosing.choose import choose_plan
from qplan.choosing.context import PlanningContext
from qplan.choosing.rivals import Measured
from qplan.cost.file_bytes import estimate_fixed
from qplan.planner.budget import Budget
from qplan.planner.ceiling import Ceiling
from qplan.planner.planning import make_plan
from qplan.planner.rules import Rules
from qplan.rounding.rounder import Rounder
from qplan.run.plan import Plan
from qplan.run.table import SensitivityTable
from qplan.settings import Memory
from qplan.uniform import UniformExport, uniform_formats
from tests.support.invented_table import make_table


def both_memories() -> SensitivityTable:
    """Under low, attention is far more sensitive than the MLP; under normal only somewhat."""
    table = make_table()
    kinds = {spec.name: spec.kind for spec in table.model.tensors}
    low = {"q_proj": 100.0, "up_proj": 0.01, "down_proj": 1.0, "lm_head": 1.0}
    normal = {"q_proj": 1.0, "up_proj": 0.01, "down_proj": 1.0, "lm_head": 1.0}
    memories: tuple[tuple[Memory, dict[str, float]], ...] = (("low", low), ("normal", normal))
    rows = [
        replace(m, memory=memory, kl_nats=m.kl_nats * factors[kinds[m.tensor]])
        for memory, factors in memories
        for m in table.measurements
    ]
    return replace(table, conditions=replace(table.conditions, memory="low"), measurements=tuple(rows))


def choose_with(
    monkeypatch: pytest.MonkeyPatch, ratios: Iterator[dict[str, float]], rules: Rules, rounding: str = "rtn"
) -> Plan:
    """Choose with invented joint losses: uniform formats lose half with the export's rounding to nearest."""
    table = both_memories()
    export = replace(UniformExport.plain(8), rounding=rounding)
    nats = {"plan": 1.0, "uniform": 0.5 if rounding == "rtn" else 2.0}
    monkeypatch.setattr(PlanningContext, "whole", lambda *_: {k: SimpleNamespace(kl_nats=v) for k, v in nats.items()})
    rival = Measured(export, export.formats(table.model), 1000, 0.1)
    monkeypatch.setattr(PlanningContext, "against", lambda *_: next(ratios))
    monkeypatch.setattr("qplan.choosing.choose.best_rivals", lambda *_: (rival,))
    nothing: Any = None
    rounder = Rounder(nothing)
    fixed = estimate_fixed(table.model)
    return choose_plan(
        PlanningContext(table, fixed, rounder, rounder, nothing, lambda _: None, rules), Budget.parse("int8")
    )


def single(plan: Plan, memory: Any) -> float:
    losses = both_memories().kl(memory)
    return sum(losses[t.name][t.format.name] for t in plan.tensors)


def test_a_plan_that_is_nowhere_worse_is_taken_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    table = both_memories()
    plan = choose_with(monkeypatch, iter([{"low": 1.0, "normal": 1.0}]), Rules())
    assert plan.formats == make_plan(table, Budget.parse("int8"), estimate_fixed(table.model)).formats


def test_a_plan_that_is_jointly_worse_is_solved_again_lower(monkeypatch: pytest.MonkeyPatch) -> None:
    first = choose_with(monkeypatch, iter([{"low": 1.0, "normal": 1.0}]), Rules())
    second = choose_with(monkeypatch, iter([{"low": 0.9, "normal": 1.7}, {"low": 1.0, "normal": 0.99}]), Rules())
    assert single(second, "normal") <= single(first, "normal") * 0.95 / 1.7 * (1 + 1e-9)
    assert single(second, "low") >= single(first, "low")


def test_uniform_is_the_last_resort(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = choose_with(monkeypatch, iter([{"low": 1.5, "normal": 1.5}] * 9), Rules())
    assert plan.formats == uniform_formats(both_memories().model, 8)
    assert any("uniform int8" in str(note) for note in plan.notes)


def test_formats_of_an_export_with_other_integers_must_lose_less_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = choose_with(monkeypatch, iter([{"low": 1.5, "normal": 1.5}] * 9), Rules(), "llmexport-hqq")
    assert plan.formats != uniform_formats(both_memories().model, 8)
    assert any("worse than uniform int8-hqq" in str(note) for note in plan.notes)


def test_rules_of_the_user_are_kept_even_if_they_cost(monkeypatch: pytest.MonkeyPatch) -> None:
    rules = Rules(min_bits={"*.0.mlp.up_proj": 16})
    plan = choose_with(monkeypatch, iter([{"low": 1.5, "normal": 1.5}] * 9), rules)
    assert all(t.format.bits == 16 for t in plan.tensors if t.name.endswith(".0.mlp.up_proj"))
    assert any("worse than uniform int8" in str(note) for note in plan.notes)


def test_a_ceiling_limits_the_sum_of_another_loss() -> None:
    table = both_memories()
    fixed = estimate_fixed(table.model)
    least = make_plan(table, Budget.parse("int8"), fixed)
    limit = single(least, "normal") / 2
    plan = make_plan(
        table, Budget.parse("int8"), fixed, ceilings=[Ceiling("loss under memory normal", table.kl("normal"), limit)]
    )
    assert single(plan, "normal") <= limit * (1 + 1e-9)
    assert plan.predicted_nats >= least.predicted_nats
