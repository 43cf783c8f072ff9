"""Dynamic programming over partial plans, with bounds.

Tensors of one shape cost the same in the same format, so many partial plans have the same costs. They form one state,
of which only the partial plan with the least loss can be part of a best plan. A state is dropped if no completion can
beat the best known plan, which Lagrangian bounds of the remaining groups show. These are computed at many prices around
the relaxation's, since states far above or below the budget need other prices. If too many states are left, those
with the worst bounds are dropped unproved, and the least of their bounds limits what the search proves. Limits are
checked in integers.
"""

from __future__ import annotations

import itertools
import math
import time
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qplan.planner.solver.dominance import Grid
from qplan.planner.solver.relaxation import Relaxation

_FACTORS = (0.8, 0.93, 1.0, 1.07, 1.25)
"""Prices that the remaining groups are bounded at, relative to the relaxation's."""
_MOST_PRICES = 125


@dataclass(frozen=True)
class Found:
    """Result of a search."""

    picks: tuple[int, ...] | None
    """The best picks found; None if none have a value of at most the one to beat."""
    dropped: float
    """Lower bound of everything that was dropped unproved; infinite if nothing was, which proves the result."""


@dataclass(frozen=True)
class _Rest:
    """Lower bounds, at several prices, of what the groups from some position on add."""

    prices: NDArray[np.float64]
    """``[prices, rows]``."""
    sums: NDArray[np.float64]
    """``[groups + 1, prices]``: least value plus charge of all groups from a position on."""

    def bound(self, position: int, slack: NDArray[np.int64]) -> NDArray[np.float64]:
        """``[states]``: the least value that completing a state adds, given its remaining ``slack [states, rows]``."""
        left = slack.astype(np.float64)
        least = np.full(len(left), -np.inf)
        for price, value in zip(self.prices, self.sums[position], strict=True):
            np.maximum(least, value - left @ price, out=least)
        return least


def search(grid: Grid, relaxation: Relaxation, best: float, states: int, deadline: float = math.inf) -> Found:
    """Find the best picks of living choices with a value below ``best``.

    Args:
        grid: the program, with the choices that are still open.
        relaxation: the bound of the same grid.
        best: value to beat; infinite if no plan is known.
        states: states to keep at a time; of more, those with the worst bounds are dropped unproved.
        deadline: reading of `time.perf_counter` after which the search gives up without a result.
    """
    least = grid.least_costs()
    most = np.where(grid.alive, grid.costs, np.iinfo(np.int64).min).max(axis=2).sum(axis=1)
    rows = np.flatnonzero(most > grid.limits)
    above = np.where(grid.alive, grid.costs - least[:, :, None], 0)[rows]
    slack = (grid.limits - least.sum(axis=1))[rows][None]
    if (slack < 0).any():
        return Found(None, math.inf)
    picks = grid.alive.argmax(axis=1)
    order = _order(grid, above)
    rest = _rest(grid, above, order, relaxation.prices[rows])
    value = np.array([grid.values[np.arange(len(picks)), picks].sum() - grid.values[order, picks[order]].sum()])
    # a value may exceed its bound by rounding
    allowed = best + relaxation.margin
    trail: list[tuple[NDArray[np.int32], NDArray[np.int16]]] = []
    dropped = math.inf
    for position, group in enumerate(order):
        if time.perf_counter() > deadline:
            return Found(None, -math.inf)
        choices = np.flatnonzero(grid.alive[group])
        value = (value[:, None] + grid.values[group, choices]).ravel()
        slack = (slack[:, None, :] - above[:, group, choices].T).reshape(len(value), len(rows))
        kept = np.flatnonzero((slack >= 0).all(axis=1))
        reach = value[kept] + rest.bound(position + 1, slack[kept])
        near = reach <= allowed
        kept, reach = kept[near], reach[near]
        firsts = _least_of_equals(value[kept], slack[kept])
        kept, reach = kept[firsts], reach[firsts]
        if len(kept) > states:
            nearest = np.argpartition(reach, states)
            dropped = min(dropped, float(reach[nearest[states:]].min()) - relaxation.margin)
            kept = np.sort(kept[nearest[:states]])
        if not len(kept):
            return Found(None, dropped)
        value, slack = value[kept], slack[kept]
        parents, taken = np.divmod(kept, len(choices))
        trail.append((parents.astype(np.int32), choices[taken].astype(np.int16)))
    state = int(value.argmin())
    for (parent, choice), group in zip(reversed(trail), reversed(order), strict=True):
        picks[group] = choice[state]
        state = int(parent[state])
    return Found(tuple(int(pick) for pick in picks), dropped)


def _order(grid: Grid, above: NDArray[np.int64]) -> list[int]:
    """Undecided groups, the costliest first and groups of equal costs together, so that states merge early."""
    dearest = np.where(grid.alive, above, 0).max(axis=2, initial=0)
    return sorted((int(g) for g in np.flatnonzero(grid.alive.sum(axis=1) > 1)), key=lambda g: tuple(-dearest[:, g]))


def _rest(grid: Grid, above: NDArray[np.int64], order: list[int], prices: NDArray[np.float64]) -> _Rest:
    grids = [_FACTORS if price > 0 else (0.0,) for price in prices]
    if np.prod([len(factors) for factors in grids]) > _MOST_PRICES:
        alone = [
            tuple(f if r == row else 1.0 for r in range(len(grids))) for row in range(len(grids)) for f in _FACTORS
        ]
        factors = np.array(alone)
    else:
        factors = np.array(list(itertools.product(*grids)))
    several = factors.reshape(len(factors), len(prices)) * prices
    sums = np.zeros((len(order) + 1, len(several)))
    values = np.where(grid.alive, grid.values, np.inf)
    for position in range(len(order) - 1, -1, -1):
        group = order[position]
        charged = values[group] + several @ above[:, group, :].astype(np.float64)
        sums[position] = sums[position + 1] + charged.min(axis=1)
    return _Rest(several, sums)


def _least_of_equals(value: NDArray[np.float64], slack: NDArray[np.int64]) -> NDArray[np.intp]:
    """Ascending indices of the state with the least value among those with equal slack."""
    if not len(value):
        return np.zeros(0, dtype=np.intp)
    order = np.lexsort((value, *slack.T))
    ordered = slack[order]
    first = np.concatenate([[True], (ordered[1:] != ordered[:-1]).any(axis=1)])
    chosen: NDArray[np.intp] = np.sort(order[first])
    return chosen
