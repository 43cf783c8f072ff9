"""Single changes to a plan: those that nearly paid off, and the best combination of measured ones."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from qplan.planner.solver.branching import decided, pivots
from qplan.planner.solver.dominance import Grid, drop_impossible
from qplan.planner.solver.program import Program, Row
from qplan.planner.solver.relaxation import relax
from qplan.planner.solver.solver import solve


@dataclass(frozen=True, order=True)
class Move:
    """The change of one group to another choice."""

    net: float
    """Change of value plus change of use of every limit, at the limits' prices. A small value is nearly as good."""
    group: int
    choice: int


def nearest_moves(program: Program, picks: Sequence[int], most: int) -> tuple[Move, ...]:
    """The moves that nearly paid off, nearest first.

    Moves that use more of the limits alternate with moves that use less, since the latter make room for the former.
    Moves that nothing could make room for are left out.

    Args:
        program: groups, values and limits.
        picks: a plan that satisfies the limits.
        most: how many moves to return.
    """
    grid = Grid.of(program)
    priced = relax(drop_impossible(decided(grid, {group: picks[group] for group in pivots(grid)})))
    prices = [0.0] * len(program.rows) if priced is None else [float(price) for price in priced.prices]
    possible = drop_impossible(grid).alive
    taking: list[Move] = []
    giving: list[Move] = []
    for group, values in enumerate(program.values):
        here = picks[group]
        for choice, value in enumerate(values):
            if choice != here and possible[group, choice]:
                taken = sum(
                    price * (row.costs[group][choice] - row.costs[group][here])
                    for price, row in zip(prices, program.rows, strict=True)
                )
                (taking if taken > 0 else giving).append(Move(value - values[here] + taken, group, choice))
    turns = itertools.zip_longest(sorted(taking), sorted(giving))
    return tuple(move for pair in turns for move in pair if move is not None)[:most]


def combine(program: Program, picks: Sequence[int], changes: Mapping[tuple[int, int], float]) -> tuple[int, ...]:
    """The best combination of measured moves within all limits.

    Args:
        program: groups, values and limits; its values are not used.
        picks: the plan that was changed.
        changes: by group and choice, how much more the whole model loses with this move alone.

    Returns:
        Picks whose changes have the smallest sum; ``picks`` itself if no combination pays off.
    """
    options = [[here, *(choice for group, choice in changes if group == index)] for index, here in enumerate(picks)]
    values = []
    for index, choices in enumerate(options):
        changed = [0.0, *(changes[index, choice] for choice in choices[1:])]
        # a constant per group does not affect comparisons, and keeps values from being negative
        values.append(tuple(value - min(changed) for value in changed))
    rows = tuple(
        Row(
            row.name,
            tuple(tuple(row.costs[g][c] for c in choices) for g, choices in enumerate(options)),
            row.limit,
        )
        for row in program.rows
    )
    found = solve(Program(tuple(values), rows), known=[[0] * len(options)])
    return tuple(choices[pick] for choices, pick in zip(options, found.picks, strict=True))
