"""Menus that leave a budget no choice are told of, in the table and in the plan."""

from __future__ import annotations

import numpy as np
import pytest

from qplan.cost.file_bytes import FixedBytes
from qplan.formats import INT4
from qplan.jobs.deciding import decisions
from qplan.planner.budget import Budget, parse_budgets
from qplan.planner.elbow_room import notes_on_menu, rules_within
from qplan.planner.planning import make_plan
from qplan.planner.rules import Rules
from tests.support.invented_table import make_table

BUDGETS = parse_budgets(["int4", "int8", "8bpw"])
NARROW = ("fp16", "int8", "int6", "int4")
WIDE = (*NARROW, "int3")


def test_a_menu_without_narrow_formats_has_nothing_to_plan_at_its_smallest(fixed: FixedBytes) -> None:
    (told,) = notes_on_menu(make_table(NARROW), fixed, BUDGETS)
    assert str(told) == (
        "at int4 these formats leave plans no choice: only the smallest format of every tensor fits; add int3 to "
        "--formats"
    )
    assert not list(notes_on_menu(make_table(WIDE), fixed, BUDGETS))


def test_a_plan_says_so_where_it_had_no_choice(fixed: FixedBytes) -> None:
    plan = make_plan(make_table(NARROW), Budget.parse("int4"), fixed)
    assert "no-choice-left" in {note.code for note in plan.notes}
    assert {fmt.bits for name, fmt in plan.formats.items() if name != "lm_head"} == {4}


@pytest.mark.parametrize(("formats", "budget"), [(WIDE, "int4"), (NARROW, "int8")])
def test_a_plan_with_a_choice_says_nothing(formats: tuple[str, ...], budget: str, fixed: FixedBytes) -> None:
    plan = make_plan(make_table(formats), Budget.parse(budget), fixed)
    assert "no-choice-left" not in {note.code for note in plan.notes}


def test_what_the_user_pinned_is_not_held_against_the_menu(fixed: FixedBytes) -> None:
    rules = Rules(pins={"*.0.*": INT4})
    plan = make_plan(make_table(NARROW), Budget.parse("int4"), fixed, rules=rules)
    assert "no-choice-left" not in {note.code for note in plan.notes}


def test_a_menu_without_formats_that_heads_should_have_is_no_error(fixed: FixedBytes) -> None:
    table = make_table(("int4",))
    assert not {note.code for note in notes_on_menu(table, fixed, BUDGETS)} - {"menu-without-choice"}
    assert rules_within(table).logits_bits == 4
    (decided, *_) = decisions(table, fixed, np.random.default_rng(0), draws=1)
    assert {fmt.bits for fmt in decided.plan.formats.values()} == {4}
    assert rules_within(make_table(NARROW)) == Rules()
