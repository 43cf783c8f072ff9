"""The exact solver: bound, kernel, search. Its answer is checked in integers and its gap is proved.

1. Impossible and dominated choices go.
2. The largest group is decided, one branch per choice.
3. In each the linear relaxation gives prices and a lower bound; each choice has an `extra`, by which it raises that.
4. The kernel, all choices with an extra below some width, is solved exactly: by states, or where these are too many by
   HiGHS. Its best plan is an upper bound. If the distance from bound to best is within the width, no choice outside
   can be part of a better plan and the plan is optimal; else a larger kernel is solved, at most up to that distance.
   (Reduced-cost fixing, Pisinger, "A minimal algorithm for the multiple-choice knapsack problem", 1995.)
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from qplan.planner.solver.branch_and_cut import branch_and_cut
from qplan.planner.solver.branching import Branch, branches
from qplan.planner.solver.dominance import Grid, drop_dominated, drop_impossible
from qplan.planner.solver.program import Program, Solution, Status
from qplan.planner.solver.relaxation import Relaxation, relax
from qplan.planner.solver.search import search

TIME_LIMIT_S = 60.0
KERNEL = 60
"""Choices beyond one per group that the first kernel holds."""
GROWTH = 4
"""By how much each kernel is larger than the one before, until one is proved to hold the optimum."""
ROUGH = ((300, 0.0), (2_000, 0.3))
"""How a good plan is found: partial plans kept at a time, then seconds for HiGHS, until one way is complete."""
EXACT = ((16_000, 0.0), (100_000, math.inf))
"""How the last kernel is closed. HiGHS is fast where losses are uneven, states are where many tensors are alike."""
NEGLIGIBLE = 1e-9
"""A relative gap that counts as none: far below the error of any measured loss, above that of HiGHS."""


@dataclass
class _Best:
    """The best plan so far and the bound of all others."""

    picks: tuple[int, ...] | None = None
    value: float = math.inf

    def offer(self, program: Program, picks: Sequence[int] | None) -> None:
        """Take picks if they satisfy every row, in integers, and are better."""
        if picks is not None and program.holds(picks):
            value = program.value(picks)
            if value < self.value:
                self.picks, self.value = tuple(picks), value


def solve(program: Program, *, known: Iterable[Sequence[int]] = (), time_limit_s: float = TIME_LIMIT_S) -> Solution:
    """Find the best picks of a program and prove it.

    Args:
        program: groups, values and limits.
        known: picks that the answer must not be worse than, where they are feasible.
        time_limit_s: wall time; after it the best picks so far are returned with their gap.

    Returns:
        A solution with a status that the caller must look at.
    """
    start = time.perf_counter()
    best = _Best()
    for picks in known:
        best.offer(program, picks)
    grid = drop_impossible(Grid.of(program))
    parts = branches(drop_dominated(grid)) if grid.solvable else []
    bound, prices = math.inf, np.zeros(len(program.rows))
    for part in parts:
        before = best.picks
        bound = min(bound, _close(program, part, best, start + time_limit_s))
        if best.picks != before or part is parts[0]:
            prices = part.relaxation.prices
    return Solution(
        _status(best, bound),
        best.picks or (),
        best.value,
        min(bound, best.value),
        sum(len(values) for values in program.values),
        time.perf_counter() - start,
        {row.name: float(price) for row, price in zip(program.rows, prices, strict=True)},
    )


def _status(best: _Best, bound: float) -> Status:
    if best.picks is None:
        return Status.INFEASIBLE if math.isinf(bound) else Status.TIME_LIMIT
    return Status.OPTIMAL if best.value - bound <= NEGLIGIBLE * abs(best.value) else Status.TIME_LIMIT


def _close(program: Program, part: Branch, best: _Best, deadline: float) -> float:
    """Improve ``best`` by kernels of growing width until one is proved to hold the optimum of a part.

    Returns:
        The part's bound: that of the best plan if the part holds no better one.
    """
    grid, relaxation, size = part.grid, part.relaxation, KERNEL
    width = _width_of(relaxation, grid, size)
    while _distance(best, relaxation) > 0 and time.perf_counter() < deadline:
        kernel = grid.keep(relaxation.extra <= width)
        whole = bool((kernel.alive == grid.alive).all())
        complete, bound = _solve_kernel(program, kernel, relaxation, best, deadline, stages=ROUGH)
        if whole or _distance(best, relaxation) <= width:
            if not complete:
                complete, bound = _solve_kernel(program, kernel, relaxation, best, deadline, stages=EXACT)
            return best.value if complete else bound
        if best.picks is not None:
            # what cannot beat the best goes for good, which also sharpens the next prices
            grid = grid.keep(relaxation.extra <= _distance(best, relaxation))
            again = relax(grid) if grid.solvable else None
            if again is not None and again.bound > relaxation.bound:
                relaxation = again
        # in steps: a larger kernel may hold a better plan, which makes the last one smaller
        size *= GROWTH
        width = min(_distance(best, relaxation), max(width, _width_of(relaxation, grid, size)))
    return min(best.value, relaxation.bound)


def _distance(best: _Best, relaxation: Relaxation) -> float:
    """How much a choice may raise the bound and still be part of a plan as good as the best; infinite without one."""
    return best.value - relaxation.bound + 2 * relaxation.margin


def _unfinished(best: _Best, bound: float) -> tuple[Status, float]:
    near = best.picks is not None and best.value - bound <= NEGLIGIBLE * abs(best.value)
    return (Status.OPTIMAL if near else Status.TIME_LIMIT), bound


def _width_of(relaxation: Relaxation, grid: Grid, size: int) -> float:
    """The extra up to which a kernel has ``size`` choices beyond one per group; 0 if the bound is tight everywhere."""
    extra = relaxation.extra[grid.alive]
    positive = np.sort(extra[extra > relaxation.margin])
    return float(positive[min(size, len(positive)) - 1]) if len(positive) else 0.0


def _solve_kernel(
    program: Program,
    kernel: Grid,
    relaxation: Relaxation,
    best: _Best,
    deadline: float,
    *,
    stages: Iterable[tuple[int, float]],
) -> tuple[bool, float]:
    """Improve ``best`` within a kernel; return whether nothing better is in it, and a bound of what is."""
    complete, bound = False, relaxation.bound
    for states, highs_s in stages:
        picks, complete = search(kernel, relaxation, best.value, states)
        best.offer(program, picks)
        # a better plan closes more choices
        kernel = kernel.keep(relaxation.extra <= _distance(best, relaxation))
        left = deadline - time.perf_counter()
        if not complete and left > 0 and highs_s > 0:
            scale = _distance(best, relaxation)
            if math.isinf(scale):
                scale = float(relaxation.extra[kernel.alive].max())
            cut = branch_and_cut(kernel, scale, min(left, highs_s))
            best.offer(program, cut.picks)
            complete, bound = cut.complete, max(bound, cut.bound)
        if complete or left <= 0:
            break
    return complete, bound
