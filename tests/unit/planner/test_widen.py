"""Noise in the losses decides nothing: not the widths of a plan, not whether a larger budget loses less."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qplan.cost.file_bytes import FixedBytes, file_bytes
from qplan.formats import QuantFormat
from qplan.planner.budget import Budget
from qplan.planner.frontier import frontier
from qplan.planner.planning import is_unlimited, make_plan, picks_of
from qplan.planner.rules import Rules
from qplan.planner.widen import widened
from qplan.run.table import SensitivityTable
from tests.support.invented_table import make_table

FORMATS = ("fp16", "int8", "int6", "int5", "int4")
FIXED = FixedBytes(4000, 0, 20_000, exact=True)


def noisy(seed: int, spread: float = 1.0, layers: int = 2) -> SensitivityTable:
    """Losses with errors that often turn the order of widths around."""
    table, rng = make_table(FORMATS, layers=layers), np.random.default_rng(seed)
    rows = tuple(
        replace(m, kl_nats=m.kl_nats * math.exp(spread * rng.normal()), stderr_nats=m.kl_nats)
        for m in table.measurements
    )
    return replace(table, measurements=rows)


@settings(max_examples=15)
@given(st.integers(0, 2**31), st.floats(20_000, 260_000))
def test_no_format_could_be_wider_for_nothing(seed: int, room: float) -> None:
    table, rules = noisy(seed), Rules()
    smallest = make_plan(table, Budget.parse("int4"), FIXED).budget_bytes
    plan = make_plan(table, Budget.of_bytes(smallest + int(room)), FIXED)
    assert plan.files.total <= plan.budget_bytes
    losses = rules.losses(table)
    problem = rules.problem(table.model, losses, plan.budget_bytes - FIXED.total)
    picks = picks_of(problem, plan.formats, table.model)
    assert picks is not None
    program = problem.program()
    for group, pick in enumerate(picks):
        choices = problem.groups[group].choices
        for other, choice in enumerate(choices):
            if choice.format.bits > choices[pick].format.bits and choice.loss <= choices[pick].loss:
                assert not program.holds((*picks[:group], other, *picks[group + 1 :]))


@settings(max_examples=8)
@given(st.integers(0, 2**31))
def test_the_sum_is_still_the_least_of_all_plans(seed: int) -> None:
    table = noisy(seed)
    losses = Rules().losses(table)
    plan = make_plan(table, Budget.parse("6bpw"), FIXED)
    names, least = [spec.name for spec in table.model.tensors], math.inf
    for formats in itertools.islice(itertools.product(*(table.formats_of(name) for name in names)), 0, None, 7):
        chosen = dict(zip(names, formats, strict=True))
        others = [spec for spec in table.model.tensors if spec.name != "lm_head"]
        mean = sum(spec.weights * chosen[spec.name].bits for spec in others) / sum(spec.weights for spec in others)
        if chosen["lm_head"].bits >= max(8, mean) and file_bytes(table.model, chosen, FIXED).total <= plan.budget_bytes:
            least = min(least, math.fsum(losses[name][fmt.name] for name, fmt in chosen.items()))
    assert plan.solver.objective_nats <= least * (1 + 1e-12)
    assert math.fsum(losses[t.name][t.format.name] for t in plan.tensors) == pytest.approx(plan.solver.objective_nats)


@settings(max_examples=8)
@given(st.integers(0, 2**31))
def test_a_larger_budget_never_loses_more(seed: int) -> None:
    table = noisy(seed, layers=4)
    points = frontier(table, FIXED, points=9).points
    assert [p.joint_nats for p in points] == sorted((p.joint_nats for p in points), reverse=True)
    assert [p.predicted_nats for p in points] == sorted((p.predicted_nats for p in points), reverse=True)
    plans = [make_plan(table, Budget.parse(f"{bits}bpw"), FIXED) for bits in (5.6, 6.2, 8, 12, 20)]
    assert [p.predicted_nats for p in plans] == sorted((p.predicted_nats for p in plans), reverse=True)


@settings(max_examples=8)
@given(st.integers(0, 2**31))
def test_a_budget_that_does_not_bind_buys_the_widest_and_is_said_so(seed: int) -> None:
    table = noisy(seed, spread=3.0)
    plan = make_plan(table, Budget.parse("12MB"), FIXED)
    assert {fmt.name for fmt in plan.formats.values()} == {"fp16"}
    assert is_unlimited(plan)
    assert any("does not bind" in str(note) for note in plan.notes)
    bound = make_plan(table, Budget.parse("int8"), FIXED)
    assert not is_unlimited(bound)


def test_noise_that_flatters_a_narrow_format_does_not_keep_a_wide_one_out() -> None:
    """int6 was measured better than int8, as happens under memory low, where activations lose most."""
    table = make_table(("int8", "int6", "int4"))
    rows = tuple(
        replace(m, kl_nats=1e-4 * (0.9 if m.format == "int6" else 1.0)) if m.format != "int4" else m
        for m in table.measurements
    )
    table = replace(table, measurements=rows)
    plan = make_plan(table, Budget.parse("int8"), FIXED)
    assert {fmt.name for fmt in plan.formats.values()} == {"int8"}
    tight = make_plan(table, Budget.parse("7bpw"), FIXED)
    assert {fmt.bits for fmt in tight.formats.values()} <= {8, 6}


def test_widening_takes_small_groups_first_and_keeps_every_limit() -> None:
    table, rules = noisy(3, spread=2.0), Rules()
    problem = rules.problem(table.model, rules.losses(table), None)
    narrow = tuple(
        min(range(len(group.choices)), key=lambda i, group=group: (group.choices[i].loss, group.choices[i].bytes))  # type: ignore[misc]
        for group in problem.groups
    )
    before, after = problem.picked_bytes(narrow), problem.picked_bytes(widened(problem, narrow))
    half = problem.within((before + after) // 2)
    found = widened(half, narrow)
    assert before <= half.picked_bytes(found) <= (before + after) // 2
    assert all(
        QuantFormat.parse(group.choices[new].format.name).bits >= group.choices[old].format.bits
        for group, new, old in zip(problem.groups, found, narrow, strict=True)
    )
