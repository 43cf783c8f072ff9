"""The solver against brute force: losses over ten decades, several limits."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qplan.errors import QplanError
from qplan.planner.solver import solver
from qplan.planner.solver.branching import branches, decided, pivots
from qplan.planner.solver.dominance import Grid, drop_dominated, drop_impossible
from qplan.planner.solver.program import Program, Row, Status
from qplan.planner.solver.relaxation import relax
from qplan.planner.solver.solver import solve
from tests.support.programs import programs, untied


def brute_force(program: Program) -> float:
    every = itertools.product(*(range(len(values)) for values in program.values))
    return min((program.value(picks) for picks in every if program.holds(picks)), default=math.inf)


def check(program: Program) -> None:
    best = brute_force(program)
    solution = solve(program)
    if math.isinf(best):
        assert solution.status is Status.INFEASIBLE
        assert solution.picks == ()
        return
    assert solution.status is Status.OPTIMAL
    assert program.holds(solution.picks)
    assert solution.objective == program.value(solution.picks)
    assert solution.objective == pytest.approx(best, rel=1e-12)
    assert solution.bound <= solution.objective
    assert solution.gap == 0


@settings(max_examples=300, deadline=None)
@given(programs())
def test_equals_brute_force(program: Program) -> None:
    check(program)


@settings(max_examples=200, deadline=None)
@given(programs(), st.integers(1, 3))
def test_what_is_dropped_for_its_number_is_in_the_gap(program: Program, states: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(solver, "WORK", states * len(program.values))
        patch.setattr(solver, "WIDENING", (1,))
        patch.setattr(solver, "KERNEL", 2)
        best, solution = brute_force(program), solve(program)
    assert solution.bound <= best * (1 + 1e-12)
    if solution.status is Status.INFEASIBLE:
        assert math.isinf(best)
    if solution.status is Status.OPTIMAL:
        assert solution.objective <= best * (1 + solver.ENOUGH)
    if solution.picks:
        assert program.holds(solution.picks)
        assert solution.objective == program.value(solution.picks)
        assert (solution.status is Status.OPTIMAL) == (solution.gap <= solver.ENOUGH)


@settings(max_examples=60, deadline=None)
@given(programs(), st.data())
def test_a_wider_limit_never_loses_more_if_the_plan_is_passed_on(program: Program, data: st.DataObject) -> None:
    before = solve(program)
    rows = tuple(replace(row, limit=row.limit + data.draw(st.integers(0, 10**9))) for row in program.rows)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(solver, "WIDENING", ())
        after = solve(replace(program, rows=rows), known=[before.picks] if before.picks else [])
    assert after.objective <= before.objective


@settings(max_examples=60, deadline=None)
@given(programs())
def test_the_same_program_has_the_same_answer(program: Program) -> None:
    first, again = solve(program), solve(program)
    assert replace(first, seconds=0.0) == replace(again, seconds=0.0)


@settings(max_examples=100, deadline=None)
@given(programs())
def test_pruning_keeps_an_optimum_and_bounds_hold(program: Program) -> None:
    best = brute_force(program)
    grid = drop_impossible(Grid.of(program))
    if math.isinf(best):
        return
    grid = drop_dominated(grid)
    every = itertools.product(*([c for c in range(len(row)) if row[c]] for row in grid.alive))
    assert min(program.value(picks) for picks in every if program.holds(picks)) == pytest.approx(best, rel=1e-12)
    relaxation = relax(grid)
    assert relaxation is not None
    assert relaxation.bound <= best + relaxation.margin


@settings(max_examples=100, deadline=None)
@given(programs())
def test_branches_hold_an_optimum_and_their_bounds_hold_before_and_after_they_are_sharpened(program: Program) -> None:
    best, grid = brute_force(program), drop_impossible(Grid.of(program))
    if math.isinf(best):
        return
    found = branches(drop_dominated(grid))
    least = math.inf
    for branch in found:
        every = itertools.product(*([c for c in range(len(row)) if row[c]] for row in branch.grid.alive))
        own = min((program.value(picks) for picks in every if program.holds(picks)), default=math.inf)
        least = min(least, own)
        sharp = branch.sharpened()
        if sharp is None:
            assert math.isinf(own)
            continue
        for relaxation in (branch.relaxation, sharp.relaxation):
            assert relaxation.bound <= own + relaxation.margin
        assert sharp.relaxation.bound >= branch.relaxation.bound
    assert least == pytest.approx(best, rel=1e-12)


def test_nothing_is_relaxed_where_every_group_can_have_its_best_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("qplan.planner.solver.branching.relax")
    free = Program(((1.0, 0.0), (3.0, 2.0)), (Row("bytes", ((0, 1), (0, 1)), 2),))
    assert solve(free).picks == (1, 1)
    assert solve(free).status is Status.OPTIMAL
    assert solve(free, known=[(1, 1)]).gap == 0


def test_a_tiny_objective_is_solved_to_the_end() -> None:
    # unscaled, HiGHS calls anything within 1e-6 optimal
    losses = [(1e-9 * (1 + 0.01 * g), 3e-10, 1e-10 * (1 + g % 3)) for g in range(8)]
    program = Program(tuple(losses), (Row("bytes", ((1, 2, 3),) * 8, 17),))
    check(program)


@pytest.mark.parametrize("seed", range(3))
def test_an_embedding_beside_the_head_is_decided_as_well(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    # with the larger of them decided alone, states leave a gap of 0.17 after a minute
    program = untied(seed)
    monkeypatch.setattr(solver, "WIDENING", (1,))
    solution = solve(program)
    assert solution.status is Status.OPTIMAL
    assert program.holds(solution.picks)
    assert len(pivots(drop_impossible(Grid.of(program)))) == 2


def test_groups_of_one_size_are_not_decided() -> None:
    size = tuple((0, cost) for cost in (10, 11, 12, 10, 11))
    program = Program(((1.0, 0.0),) * 5, (Row("bytes", size, 30),))
    assert pivots(Grid.of(program)) == (2,)


def test_one_byte_decides() -> None:
    exact = Program(((1.0, 0.0),) * 3, (Row("bytes", ((10**9, 10**9 + 1),) * 3, 3 * 10**9 + 2),))
    assert solve(exact).objective == 1.0
    none = Program(((1.0, 0.0),) * 3, (Row("bytes", ((10**9, 10**9 + 1),) * 3, 3 * 10**9 - 1),))
    assert solve(none).status is Status.INFEASIBLE


def test_rows_that_cannot_hold_together_are_infeasible_to_the_unit() -> None:
    # the one wants at least a half, the other at most a half less one: a relative 1e-10, below any float tolerance
    costs = ((0, 5 * 10**9), (0, 3 * 10**9), (0, 2 * 10**9))
    more = tuple((cost, 0) for _, cost in costs)
    for limit, feasible in ((5 * 10**9, True), (5 * 10**9 - 1, False)):
        program = Program(((1.0, 2.0),) * 3, (Row("up", costs, 5 * 10**9), Row("down", more, limit)))
        assert (solve(program).status is Status.OPTIMAL) == feasible
        assert (solve(program).status is Status.INFEASIBLE) != feasible
        check(program)


def test_known_picks_are_never_beaten_by_the_answer() -> None:
    program = Program(((1.0, 0.0), (1.0, 0.0)), (Row("bytes", ((0, 1), (0, 1)), 1),))
    solution = solve(program, known=[(0, 1), (1, 1)], time_limit_s=0.0)
    assert solution.objective == 1.0
    assert program.holds(solution.picks)


def test_time_limit_is_a_status_with_a_gap() -> None:
    # forty equal-ratio items and a limit between two sums: nothing closes at the root
    costs = tuple((0, 2 * (100 + 7 * g % 31)) for g in range(40))
    values = tuple((c[1] * (1 + 1e-3 * math.sin(g)), 0.0) for g, c in enumerate(costs))
    program = Program(values, (Row("bytes", costs, 2_001), Row("other", tuple((c[1], 0) for c in costs), 7_000)))
    solution = solve(program, known=[], time_limit_s=0.0)
    assert solution.status in {Status.TIME_LIMIT, Status.OPTIMAL, Status.INFEASIBLE}
    assert solution.bound <= solution.objective


def test_prices_say_what_a_unit_is_worth() -> None:
    # the largest group is decided first: what is left buys half of the next best step, 3 nats for 10 bytes
    rows = (Row("bytes", ((0, 10), (0, 10), (0, 15)), 15), Row("slack", ((0, 1), (0, 1), (0, 1)), 9))
    program = Program(((4.0, 1.0), (6.0, 1.0), (2.0, 0.9)), rows)
    picks = solve(program).picks
    assert picks == (0, 1, 0)
    grid = Grid.of(program)
    relaxation = relax(drop_impossible(decided(grid, {group: picks[group] for group in pivots(grid)})))
    assert relaxation is not None
    assert relaxation.prices == pytest.approx([0.3, 0.0])


def test_a_program_is_checked() -> None:
    with pytest.raises(QplanError, match="at least one group"):
        Program((), ())
    with pytest.raises(QplanError, match="finite"):
        Program(((math.nan,),), ())
    with pytest.raises(QplanError, match="'bytes' does not have one cost"):
        Program(((1.0,),), (Row("bytes", ((1, 2),), 3),))
