"""Removes choices that no best plan needs: impossible and dominated ones."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from qplan.planner.solver.program import Program

Places = tuple[NDArray[np.intp], NDArray[np.intp]]
"""Group indices and choice indices, for indexing a grid."""


@dataclass(frozen=True)
class Grid:
    """A program as padded arrays over ``[groups, choices]``, with the choices still in play."""

    values: NDArray[np.float64]
    """Losses, ``[groups, choices]``; 0 in padding."""
    costs: NDArray[np.int64]
    """Costs, ``[rows, groups, choices]``; 0 in padding."""
    limits: NDArray[np.int64]
    """``[rows]``: limit of each row."""
    alive: NDArray[np.bool_]
    """``[groups, choices]``: False in padding and for choices that were ruled out."""

    @classmethod
    def of(cls, program: Program) -> Grid:
        """Lay out a program, with all its choices alive."""
        width = max(len(values) for values in program.values)
        groups = len(program.values)
        values = np.zeros((groups, width))
        alive = np.zeros((groups, width), dtype=np.bool_)
        costs = np.zeros((len(program.rows), groups, width), dtype=np.int64)
        for g, group in enumerate(program.values):
            values[g, : len(group)] = group
            alive[g, : len(group)] = True
            for r, row in enumerate(program.rows):
                costs[r, g, : len(group)] = row.costs[g]
        return cls(values, costs, np.array([row.limit for row in program.rows], dtype=np.int64), alive)

    def keep(self, alive: NDArray[np.bool_]) -> Grid:
        """The same grid with fewer choices alive."""
        return replace(self, alive=self.alive & alive)

    @property
    def solvable(self) -> bool:
        """Whether every group still has a choice."""
        return bool(self.alive.any(axis=1).all())

    @property
    def places(self) -> Places:
        """Group and choice of every living choice, in order."""
        group, choice = np.nonzero(self.alive)
        return group, choice

    def least_values(self) -> tuple[int, ...]:
        """The living choice of each group with the smallest value, the first of equals."""
        return tuple(int(choice) for choice in np.where(self.alive, self.values, np.inf).argmin(axis=1))

    def least_costs(self) -> NDArray[np.int64]:
        """``[rows, groups]``: the smallest cost of a living choice."""
        least: NDArray[np.int64] = np.where(self.alive, self.costs, np.iinfo(np.int64).max).min(axis=2)
        return least


def drop_impossible(grid: Grid) -> Grid:
    """Repeatedly drop choices that break a row even if every other group takes its cheapest choice.

    A group may lose its last choice: the program is then infeasible.
    """
    while grid.solvable:
        least = grid.least_costs()
        slack = grid.limits - least.sum(axis=1)
        fits = (grid.costs - least[:, :, None] <= slack[:, None, None]).all(axis=0)
        if (fits | ~grid.alive).all():
            break
        grid = grid.keep(fits)
    return grid


def drop_dominated(grid: Grid) -> Grid:
    """Drop a choice where another of its group is no worse in value and in every row.

    This is sound for any number of limits, since every row says "at most". Of equal choices the first is kept. Rows
    that no picks can break, including those that `drop_impossible` made slack, are ignored.
    """
    most = np.where(grid.alive, grid.costs, np.iinfo(np.int64).min).max(axis=2).sum(axis=1)
    costs = grid.costs[most > grid.limits]
    # [groups, choice, other]: whether the other one is alive and no worse, and whether the two are equal
    one, other = grid.values[:, :, None], grid.values[:, None, :]
    no_worse, equal = grid.alive[:, None, :] & (other <= one), other == one
    for row in costs:
        one_costs, other_costs = row[:, :, None], row[:, None, :]
        no_worse &= other_costs <= one_costs
        equal &= other_costs == one_costs
    places = np.arange(grid.alive.shape[1])
    no_worse &= (places[None, :] < places[:, None]) | ~(equal & grid.alive[:, :, None])
    no_worse &= places[None, :] != places[:, None]
    return grid.keep(np.logical_not(no_worse.any(axis=2)))
