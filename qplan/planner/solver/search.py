"""Search by states: partial plans with equal costs are one state, and bounds drop the rest.

Tensors of one shape cost the same in the same format, so that partial plans meet in few sums of costs; of those
that meet only the one with the least loss can be part of a best plan. A partial plan goes when no completion can beat
the best plan known, by Lagrangian bounds of the rest at many prices around the relaxation's (a plan that has drifted
off the budget is seen by prices above or below). Where too many are left, those with the worst bounds go unproved: what
they might have become is the bound of the answer. Limits are kept in integers.
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
"""Prices at which the rest is bounded, relative to the relaxation's."""
_MOST_PRICES = 125


@dataclass(frozen=True)
class Found:
    """What a search came to."""

    picks: tuple[int, ...] | None
    """The best picks that were reached, None if nothing at most as large as the value to beat was."""
    dropped: float
    """No picks that were dropped unproved have a smaller sum; infinite if none were, so that nothing is better."""


@dataclass(frozen=True)
class _Rest:
    """Lower bounds of what the groups from some position on add, at several prices."""

    prices: NDArray[np.float64]
    """``[prices, rows]``."""
    sums: NDArray[np.float64]
    """``[groups + 1, prices]``: least value plus charge of all groups from a position on."""

    def bound(self, position: int, slack: NDArray[np.int64]) -> NDArray[np.float64]:
        """``[states]``: what completing costs at least, with ``slack`` (``[states, rows]``) left."""
        left = slack.astype(np.float64)
        least = np.full(len(left), -np.inf)
        for price, value in zip(self.prices, self.sums[position], strict=True):
            np.maximum(least, value - left @ price, out=least)
        return least


def search(grid: Grid, relaxation: Relaxation, best: float, states: int, deadline: float = math.inf) -> Found:
    """Find the best picks of living choices with a value below ``best``.

    Args:
        grid: the program, with the choices that are still open.
        relaxation: a bound of the same grid.
        best: value to beat; infinite if no plan is known.
        states: partial plans to keep at a time; beyond, those with the worst bounds are dropped unproved.
        deadline: of `time.perf_counter`; past it the search gives up, having found and proved nothing.
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
    # values lie above the bound by rounding at most
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
    """Open groups, the costliest first and groups of equal costs together, so that states meet early."""
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
    """Indices, ascending, of the least value among states with equal slack."""
    if not len(value):
        return np.zeros(0, dtype=np.intp)
    order = np.lexsort((value, *slack.T))
    ordered = slack[order]
    first = np.concatenate([[True], (ordered[1:] != ordered[:-1]).any(axis=1)])
    chosen: NDArray[np.intp] = np.sort(order[first])
    return chosen
