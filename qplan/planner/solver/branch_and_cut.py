"""HiGHS' branch and cut on what the bound leaves open, scaled so that its tolerances do not matter.

HiGHS ends with an absolute gap of 1e-6 and accepts rows violated by 1e-6: values are scaled by the distance
between the bound and the best plan known (a tiny unscaled objective is declared optimal up to 10 % off), rows by
their largest cost, and the result is checked in integers by the caller.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp

from qplan.planner.solver.dominance import Grid
from qplan.planner.solver.relaxation import one_per_group, rows_of

_OPTIMAL, _TIME_LIMIT, _INFEASIBLE = 0, 1, 2
_SPAN = 1e3
"""The distance from bound to best becomes this many units; the absolute gap of 1e-6 is then 1e-9 of it."""
_LARGEST = 1e8
"""No scaled value above this: double precision, less the solver's own losses."""
_TIGHTENINGS = 4


@dataclass(frozen=True)
class Cut:
    """What HiGHS returned."""

    picks: tuple[int, ...] | None
    """Feasible in integers, or None."""
    bound: float
    """No picks of living choices have a smaller sum, to HiGHS' tolerance; infinite if there are none."""
    complete: bool
    """Whether HiGHS finished: the picks are the best, or there are none."""


@contextmanager
def _silenced() -> Iterator[None]:
    """Hide what HiGHS 1.12 (in SciPy 1.17) prints to the process's standard output whatever its options."""
    sys.stdout.flush()
    kept = os.dup(1)
    try:
        with open(os.devnull, "wb") as nowhere:  # noqa: PTH123 - a device, not a path of ours
            os.dup2(nowhere.fileno(), 1)
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def branch_and_cut(grid: Grid, distance: float, time_limit_s: float) -> Cut:
    """Solve the living choices of a grid.

    Args:
        grid: the program.
        distance: how far the optimum may lie from the bound, in the program's values; sets the scale.
        time_limit_s: wall time.
    """
    at = grid.places
    matrix, limits = rows_of(grid, at)
    lowest = np.where(grid.alive, grid.values, np.inf).min(axis=1)
    values = grid.values[at] - lowest[at[0]]
    largest = max(float(values.max()), 1e-300)
    scale = min(_SPAN / distance, _LARGEST / largest) if distance > 0 else _SPAN / largest
    base, bound = math.fsum(lowest), -math.inf
    constraints = [LinearConstraint(one_per_group(grid, at), 1, 1)]
    for attempt in range(1 + _TIGHTENINGS):
        within = [LinearConstraint(matrix, -np.inf, limits)] if len(limits) else []
        with _silenced():
            result = milp(
                values * scale,
                constraints=constraints + within,
                bounds=Bounds(0, 1),
                integrality=np.ones(len(values), dtype=np.int8),
                options={"mip_rel_gap": 0.0, "time_limit": time_limit_s, "disp": False},
            )
        if attempt == 0:
            dual = result.mip_dual_bound
            bound = base + dual / scale if dual is not None and math.isfinite(dual) else -math.inf
        if result.x is None:
            infeasible = result.status == _INFEASIBLE
            return Cut(None, math.inf if infeasible and attempt == 0 else bound, infeasible and attempt == 0)
        picks = np.zeros(grid.alive.shape[0], dtype=np.intp)
        largest_last = np.argsort(result.x, kind="stable")
        picks[at[0][largest_last]] = at[1][largest_last]
        used = grid.costs[:, np.arange(len(picks)), picks].sum(axis=1)
        if (used <= grid.limits).all():
            done = result.status == _OPTIMAL and attempt == 0
            return Cut(tuple(int(p) for p in picks), bound, done)
        # accepted within a tolerance that integers do not know: ask for that much less
        limits = limits - np.where(used > grid.limits, 3e-6 * (attempt + 1), 0.0)
    return Cut(None, bound, complete=False)
