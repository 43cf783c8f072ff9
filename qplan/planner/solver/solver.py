"""The solver: bounds, and a search that widens until the gap is negligible. Limits are checked in integers.

1. Impossible and dominated choices are dropped.
2. The largest groups are decided, one branch per combination of their choices.
3. In each branch the linear relaxation gives prices, a lower bound, and how much each choice would raise it (`extra`).
4. The search looks at the choices with the smallest extras first, then at all that could be part of a plan better than
   the best known (reduced-cost fixing, Pisinger, "A minimal algorithm for the multiple-choice knapsack problem", 1995).
   If it has to drop states because there are too many, their bounds limit what may have been missed.
5. The search is repeated with more states until that bound is within `ENOUGH` of the best plan.

It is compared with branch and cut, and with kernels that are solved to optimality, in ``reports/planner/solvers.md``.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from qplan.planner.solver.branching import Branch, branches
from qplan.planner.solver.dominance import Grid, drop_dominated, drop_impossible
from qplan.planner.solver.program import Program, Solution, Status
from qplan.planner.solver.relaxation import relax
from qplan.planner.solver.search import search

TIME_LIMIT_S = 60.0
ENOUGH = 1e-4
"""Relative gap at which the search ends: a thousandth of the error of a single loss."""
EXACT = 1e-12
"""Relative gap that counts as none: what rounding leaves."""
KERNEL = 60
"""Choices, beyond one per group, that the first search looks at: it only has to find a good plan."""
WORK = 50_000
"""States kept at a time, times groups: about 90 states in a large model; small models are searched exhaustively."""
WIDENING = (1, 10, 30, 100, 300, 1000)
"""Factors on the states kept, one per search; few programs need a second search."""


@dataclass
class _Best:
    """The best plan so far."""

    program: Program
    picks: tuple[int, ...] | None = None
    value: float = math.inf

    def offer(self, picks: Sequence[int] | None) -> None:
        """Take picks if they satisfy every row, in integers, and are better."""
        if picks is not None and self.program.holds(picks) and self.program.value(picks) < self.value:
            self.picks, self.value = tuple(picks), self.program.value(picks)


@dataclass
class _Part:
    """A branch, with the bound proved so far."""

    branch: Branch
    bound: float
    """No plan of the branch has a smaller sum; infinite if none of them beats the best plan."""

    def distance(self, best: _Best) -> float:
        """How much a choice may raise the bound and still be part of a plan as good as the best."""
        relaxation = self.branch.relaxation
        return best.value - relaxation.bound + 2 * relaxation.margin

    def fix(self, best: _Best) -> None:
        """Drop choices that cannot be part of a better plan, which also sharpens the prices."""
        if self.distance(best) <= 0:
            self.bound = math.inf
            return
        sharp = self.branch.sharpened()
        if sharp is None:
            self.bound = math.inf
            return
        self.branch, self.bound = sharp, max(self.bound, sharp.relaxation.bound)
        grid, distance = self.branch.grid, self.distance(best)
        left = grid.keep(self.branch.relaxation.extra <= distance)
        if distance <= 0 or not left.solvable:
            self.bound = math.inf
        elif not (left.alive == grid.alive).all():
            again = relax(left)
            sharper = again if again is not None and again.bound > self.branch.relaxation.bound else None
            self.branch = Branch(left, sharper or self.branch.relaxation, sharp=True)
            self.bound = max(self.bound, self.branch.relaxation.bound)

    def search(self, best: _Best, states: int, deadline: float, *, rough: bool) -> None:
        """Improve the best plan and raise the bound; a rough search looks at the most promising choices only.

        A rough search proves nothing about what it leaves out, so it raises the bound only if it leaves out nothing.
        """
        grid, relaxation = self.branch.grid, self.branch.relaxation
        kernel = grid.keep(relaxation.extra <= self._width) if rough else grid
        found = search(kernel, relaxation, best.value, states, deadline)
        if (kernel.alive == grid.alive).all():
            self.bound = max(self.bound, found.dropped)
        best.offer(found.picks)

    @property
    def _width(self) -> float:
        """The extra that `KERNEL` choices, beyond one per group, do not exceed."""
        relaxation = self.branch.relaxation
        positive = np.sort(relaxation.extra[self.branch.grid.alive & (relaxation.extra > relaxation.margin)])
        return float(positive[min(KERNEL, len(positive)) - 1]) if len(positive) else 0.0


def solve(program: Program, *, known: Iterable[Sequence[int]] = (), time_limit_s: float = TIME_LIMIT_S) -> Solution:
    """Find the best picks of a program and bound what might be better.

    Args:
        program: groups, values and limits.
        known: picks to start from; the result is no worse than the feasible ones.
        time_limit_s: wall time, after which the best picks so far are returned with their gap.

    Returns:
        A solution; the caller must check its status.
    """
    start = time.perf_counter()
    deadline = start + time_limit_s
    best = _Best(program)
    for picks in known:
        best.offer(picks)
    parts = _parts(drop_impossible(Grid.of(program)), best)
    for rough, factor in ((True, 1), *((False, factor) for factor in WIDENING)):
        for part in parts:
            if time.perf_counter() > deadline:
                break
            part.fix(best)
            if math.isfinite(part.bound):
                part.search(best, math.ceil(factor * WORK / len(program.values)), deadline, rough=rough)
        if _gap(best, parts) <= (EXACT if rough else ENOUGH):
            break
    bound = best.value if _gap(best, parts) <= EXACT else min((part.bound for part in parts), default=math.inf)
    unproved = Status.INFEASIBLE if best.picks is None and math.isinf(bound) else Status.TIME_LIMIT
    return Solution(
        Status.OPTIMAL if _gap(best, parts) <= ENOUGH else unproved,
        best.picks or (),
        best.value,
        min(bound, best.value),
        sum(len(values) for values in program.values),
        time.perf_counter() - start,
    )


def _parts(grid: Grid, best: _Best) -> list[_Part]:
    """The branches to search; none if there is no plan, or if every group can have the choice that is best for it."""
    if not grid.solvable:
        return []
    grid = drop_dominated(grid)
    picks = grid.least_values()
    if best.program.holds(picks):
        best.offer(picks)
        return []
    return [_Part(branch, branch.relaxation.bound) for branch in branches(grid)]


def _gap(best: _Best, parts: Sequence[_Part]) -> float:
    """Relative gap between the best plan and the bound of all parts; 0 if nothing is open, infinite without a plan."""
    if best.picks is None:
        return math.inf
    distance = best.value - min((part.bound for part in parts), default=math.inf)
    return distance / abs(best.value) if distance > 0 and best.value else max(0.0, distance)
