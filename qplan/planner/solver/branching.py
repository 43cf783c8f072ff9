"""One branch per format of the largest group, usually the head.

A relaxation that may store half a head in fp16 says little: its bound is loose and its prices mislead. Once the
largest group is decided, the others are small compared with the limits, and bound and prices are sharp.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from qplan.planner.solver.dominance import Grid, drop_dominated, drop_impossible
from qplan.planner.solver.relaxation import Relaxation, lagrangian, relax


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


def pivot(grid: Grid) -> int:
    """The group whose choices differ most in cost, relative to the spread of all groups together."""
    least = grid.least_costs().astype(np.float64)
    spread = np.where(grid.alive, grid.costs, np.iinfo(np.int64).min).max(axis=2) - least
    total = np.maximum(spread.sum(axis=1, keepdims=True), 1.0)
    return int((spread / total).max(axis=0, initial=0.0).argmax())


def decided(grid: Grid, group: int, choice: int) -> Grid:
    """The grid with one group's choice made."""
    alive = grid.alive.copy()
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
    group = pivot(grid)
    parts = [drop_impossible(decided(grid, group, int(c))) for c in np.flatnonzero(grid.alive[group])]
    kept = map(drop_dominated, (part for part in parts if part.solvable))
    found = [Branch(part, lagrangian(part, whole.prices), sharp=False) for part in kept]
    return sorted(found, key=lambda branch: branch.relaxation.bound)
