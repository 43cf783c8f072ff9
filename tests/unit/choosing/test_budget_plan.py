"""What a uniform budget means where the folded model's graph is larger."""

from __future__ import annotations

from dataclasses import replace

import pytest

from qplan.choosing.budget_plan import within_uniform
from qplan.cost.file_bytes import FixedBytes, estimate_fixed
from qplan.errors import InfeasibleError
from qplan.planner.budget import Budget
from qplan.planner.planning import make_plan
from qplan.planner.rules import Rules
from qplan.run.plan import Plan
from tests.support.invented_table import make_table

TABLE = make_table()
FIXED = estimate_fixed(TABLE.model)
UNFOLDED = replace(FIXED, graph=FIXED.graph - 400)


def solve(budget: str, asked: list[FixedBytes | None]) -> tuple[Plan, list[str]]:
    told: list[str] = []

    def best(rules: Rules) -> Plan:
        asked.append(rules.uniform_fixed)
        return make_plan(TABLE, Budget.parse(budget), FIXED, rules=rules)

    return within_uniform(best, Rules(), FIXED, UNFOLDED, say=told.append), told


def test_it_means_the_bytes_of_the_unfolded_export() -> None:
    asked: list[FixedBytes | None] = []
    plan, told = solve("int8", asked)
    assert asked == [UNFOLDED]
    assert plan.budget_bytes == make_plan(TABLE, Budget.parse("int8"), FIXED).budget_bytes - 400
    assert not told


def test_where_nothing_fits_it_means_those_of_the_folded_one_and_says_so() -> None:
    asked: list[FixedBytes | None] = []
    plan, told = solve("int4", asked)
    assert asked == [UNFOLDED, None]
    assert plan.budget_bytes == make_plan(TABLE, Budget.parse("int4"), FIXED).budget_bytes
    assert "400 bytes larger" in str(plan.notes[-1])
    assert told[0].startswith("no plan within the bytes of the unfolded uniform export: ")


def test_where_nothing_is_folded_it_is_solved_once() -> None:
    for unfolded in (None, FIXED):
        with pytest.raises(InfeasibleError):
            within_uniform(
                lambda rules: make_plan(TABLE, Budget.parse("1kB"), FIXED, rules=rules), Rules(), FIXED, unfolded
            )
