"""Moves around a plan, and their best combination, against brute force."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qplan.planner.moves import combine, nearest_moves
from qplan.planner.solver.program import Program, Row
from qplan.planner.solver.solver import solve
from tests.support.programs import programs


@settings(max_examples=100, deadline=None)
@given(programs(), st.data())
def test_the_combination_is_the_best_within_all_limits(program: Program, data: st.DataObject) -> None:
    solution = solve(program)
    if not solution.picks:
        return
    picks = solution.picks
    moves = nearest_moves(program, picks, 5)
    changes = {(m.group, m.choice): data.draw(st.floats(-1e-3, 1e-3)) for m in moves}
    found = combine(program, picks, changes)
    options = [[here, *(c for g, c in changes if g == group)] for group, here in enumerate(picks)]

    def change(other: tuple[int, ...]) -> float:
        return math.fsum(changes[g, c] for g, c in enumerate(other) if c != picks[g])

    least = min(change(other) for other in itertools.product(*options) if program.holds(other))
    assert program.holds(found)
    assert change(found) == pytest.approx(least, rel=1e-9, abs=1e-15)
    assert change(found) <= 0


def test_the_nearest_moves_are_those_that_nearly_paid() -> None:
    # a byte is worth 1 in group 0, 2 in group 1 and 1.5 in group 3; group 2 could only break the limit
    values = ((10.0, 9.0), (10.0, 8.0), (5.0, 1.0), (10.0, 8.5))
    program = Program(values, (Row("bytes", ((0, 1), (0, 1), (0, 9), (0, 1)), 2),))
    picks = solve(program).picks
    assert picks == (0, 1, 0, 1)
    moves = nearest_moves(program, picks, 9)
    assert {(m.group, m.choice) for m in moves} == {(0, 1), (1, 0), (3, 0)}
    assert (moves[0].group, moves[1].group, moves[2].group) == (0, 3, 1)
    assert all(m.net >= 0 for m in moves)
    assert nearest_moves(program, picks, 1) == moves[:1]
