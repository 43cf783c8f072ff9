"""The dynamic option that a plan is made for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from qplan.choosing.option import as_shipped, best_setting, setting
from qplan.choosing.request import PlanRequest
from qplan.cost.file_bytes import estimate_fixed
from qplan.cost.target import find_target
from qplan.errors import InputError
from qplan.planner.budget import Budget
from qplan.planner.planning import make_plan
from qplan.planner.rules import Rules
from qplan.run.folder import RunFolder
from tests.support.invented_table import make_table, with_parts

WANTED = PlanRequest(budgets=(Budget.parse("int8"),), rules=Rules(parity="files"))


def test_the_option_is_that_under_which_the_best_plan_loses_less_on_the_target(tmp_path: Path) -> None:
    table, run = with_parts(1e-3, 1e-4, 2e-3), RunFolder(tmp_path)
    fixed = estimate_fixed(table.model)
    x86 = best_setting(table, WANTED, run, fixed, None)
    assert (x86.option, x86.known, x86.wanted.rules.target.dynamic_option) == (2, True, 2)
    phone = replace(WANTED, rules=replace(WANTED.rules, target=find_target("phone")))
    assert best_setting(table, phone, run, fixed, None).option == 0  # worse there than a scale per token
    assert best_setting(table, phone, run, fixed, 2).option == 2  # asked for
    gpu = replace(WANTED, rules=replace(WANTED.rules, target=find_target("gpu")))
    assert best_setting(table, gpu, run, fixed, None).option == 0


def test_a_table_without_parts_is_planned_as_it_was_measured(tmp_path: Path) -> None:
    table = make_table()
    found = best_setting(table, WANTED, RunFolder(tmp_path), estimate_fixed(table.model), None)
    assert (found.option, found.table) == (0, table)


def test_a_plan_has_the_losses_of_the_option_that_it_ships_with() -> None:
    table = with_parts(1e-3, 1e-4, 2e-3)
    under = setting(table, WANTED, 2)
    plan = make_plan(under.table, WANTED.budgets, estimate_fixed(table.model), rules=under.wanted.rules)
    assert (plan.dynamic_option, plan.arithmetic) == (2, "x86")
    assert as_shipped(plan, table) == plan
    turned = as_shipped(replace(plan, dynamic_option=0), table)
    assert turned.formats == plan.formats
    assert turned.predicted_nats > plan.predicted_nats
    assert Rules.of(turned).target.dynamic_option == 0


def test_a_pin_that_the_target_garbles_is_refused_with_the_reason() -> None:
    table = make_table(("fp16", "int8", "int4", "int2"))
    rules = Rules.parse(pins={"*.0.mlp.*": "int2"}, target="arm-sme2")
    with pytest.raises(InputError, match="to int2: arm-sme2 has no int2: 2 and 3 bits are garbage on its SME2"):
        rules.check_patterns(table.model)
    Rules.parse(pins={"*.0.mlp.*": "int2"}, target="arm-i8mm").check_patterns(table.model)
