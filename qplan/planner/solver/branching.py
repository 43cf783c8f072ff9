"""One branch per format of the largest groups, usually the head and an embedding that is not tied to it.

A relaxation that may store half a head in fp16 says little: its bound is loose and its prices mislead. Once the
largest groups are decided, the others are small compared with the limits, and bound and prices are sharp.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from qplan.planner.solver.dominance import Grid, drop_dominated, drop_impossible
from qplan.planner.solver.relaxation import Relaxation, lagrangian, relax

LARGE = 0.1
"""Share of what is not decided that a group has at least if it is decided as well."""
OUTLYING = 4.0
"""How many times the median group's share it has."""
MOST = 64
"""Branches, unless the largest group alone has more choices."""


@dataclass(frozen=True)
class Branch:
    """A part of the program, with its bound."""

    grid: Grid
    relaxation: Relaxation
    sharp: bool
    """Whether the prices are its own relaxation's, and not those of the whole grid's."""

    def sharpened(self) -> Branch | None:
        """The branch with its own prices; None if its relaxation, and so the branch, has no solution."""
        if self.sharp:
            return self
        own = relax(self.grid)
        if own is None:
            return None
        return Branch(self.grid, own if own.bound > self.relaxation.bound else self.relaxation, sharp=True)


def pivots(grid: Grid) -> tuple[int, ...]:
    """The groups to decide: the largest, and others whose size stands out beside what is left.

    A group is as large as its choices differ in cost, in the limit where that is most, relative to all groups that are
    not decided.
    """
    least = grid.least_costs().astype(np.float64)
    spread = np.where(grid.alive, grid.costs, np.iinfo(np.int64).min).max(axis=2) - least
    found: list[int] = []
    while True:
        share = (spread / np.maximum(spread.sum(axis=1, keepdims=True), 1.0)).max(axis=0, initial=0.0)
        group = int(share.argmax())
        stands_out = share[group] >= max(LARGE, OUTLYING * float(np.median(share)))
        many = math.prod(int(grid.alive[one].sum()) for one in (*found, group)) > MOST
        if found and (many or not stands_out):
            return tuple(found)
        found.append(group)
        spread[:, group] = 0.0


def decided(grid: Grid, picks: Mapping[int, int]) -> Grid:
    """The grid with the choices of some groups made."""
    alive = grid.alive.copy()
    for group, choice in picks.items():
        alive[group] = np.arange(alive.shape[1]) == choice
    return grid.keep(alive)


def branches(grid: Grid) -> list[Branch]:
    """Branches that together hold every feasible plan of a grid, least bound first; empty if there is no plan.

    Their bounds are those that the whole grid's prices prove: any prices do, and most branches need no better ones to
    be left out.
    """
    whole = relax(grid)
    if whole is None:
        return []
    parts = [grid]
    for group in pivots(grid):
        parts = [
            drop_impossible(decided(part, {group: int(choice)}))
            for part in parts
            if part.solvable
            for choice in np.flatnonzero(part.alive[group])
        ]
    kept = map(drop_dominated, (part for part in parts if part.solvable))
    found = [Branch(part, lagrangian(part, whole.prices), sharp=False) for part in kept]
    return sorted(found, key=lambda branch: branch.relaxation.bound)
