"""A proved lower bound from prices: the linear relaxation, turned into a Lagrangian bound.

With any prices p >= 0 per unit of each row, every feasible plan costs at least
``sum_g min_c (value + p.cost) - p.limit`` (Geoffrion, "Lagrangean relaxation for integer programming", 1974).
The prices come from an LP solved in floating point; the bound does not depend on how well it was solved.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linprog
from scipy.sparse import csr_matrix

from qplan.planner.solver.dominance import Grid, Places

_INFEASIBLE = 2


@dataclass(frozen=True)
class Relaxation:
    """Prices, and the bound that they prove."""

    prices: NDArray[np.float64]
    """``[rows]``: value per unit of cost, not negative."""
    bound: float
    """No picks of living choices that satisfy the rows have a smaller sum of values."""
    extra: NDArray[np.float64]
    """``[groups, choices]``: by how much the bound rises if the group takes this choice; infinite if not alive."""
    margin: float
    """The most that floating-point rounding may have added to the bound."""


def relax(grid: Grid) -> Relaxation | None:
    """Solve the linear relaxation and derive the bound; None if even the relaxation is infeasible."""
    prices = _prices(grid)
    return None if prices is None else lagrangian(grid, prices)


def lagrangian(grid: Grid, prices: NDArray[np.float64]) -> Relaxation:
    """The bound that given prices prove for the living choices."""
    least = grid.least_costs()
    # relative to the group's cheapest choice, so that large common parts cancel in integers
    above = np.where(grid.alive, grid.costs - least[:, :, None], 0).astype(np.float64)
    slack = (grid.limits - least.sum(axis=1)).astype(np.float64)
    charged = np.where(grid.alive, grid.values + np.tensordot(prices, above, axes=1), np.inf)
    lowest = charged.min(axis=1)
    bound = math.fsum([*lowest, *(-prices * slack)])
    size = math.fsum([*np.abs(lowest), *np.abs(prices * slack)])
    return Relaxation(prices, bound, charged - lowest[:, None], 1e-13 * size)


def rows_of(grid: Grid, at: Places) -> tuple[csr_matrix, NDArray[np.float64]]:
    """Rows and limits for the choices ``at``, relative to each group's cheapest choice, each row scaled to 1."""
    least = grid.least_costs()
    slack = (grid.limits - least.sum(axis=1)).astype(np.float64)
    above = (grid.costs[:, at[0], at[1]] - least[:, at[0]]).astype(np.float64)
    size = np.maximum(above.max(axis=1, initial=1.0), 1.0)
    return csr_matrix(above / size[:, None]), slack / size


def one_per_group(grid: Grid, at: Places) -> csr_matrix:
    """Matrix ``[groups, living choices]`` that sums each group's variables."""
    columns = np.arange(len(at[0]))
    return csr_matrix((np.ones(len(columns)), (at[0], columns)), shape=(grid.alive.shape[0], len(columns)))


def _prices(grid: Grid) -> NDArray[np.float64] | None:
    if not len(grid.limits):
        return np.zeros(0)
    at = grid.places
    matrix, limits = rows_of(grid, at)
    values = grid.values[at] - np.where(grid.alive, grid.values, np.inf).min(axis=1)[at[0]]
    scale = 1e3 / max(float(values.max()), 1e-300)
    # scipy-stubs don't know that linprog takes sparse matrices
    result = cast("Any", linprog)(
        values * scale,
        A_ub=matrix,
        b_ub=limits,
        A_eq=one_per_group(grid, at),
        b_eq=np.ones(grid.alive.shape[0]),
        bounds=(0, None),
        method="highs",
    )
    if result.status == _INFEASIBLE:
        return None
    if result.status != 0:
        # prices of 0 still give a valid, if weak, bound
        return np.zeros(len(grid.limits))
    least = grid.least_costs()
    size = np.maximum((grid.costs[:, at[0], at[1]] - least[:, at[0]]).max(axis=1, initial=1), 1)
    found: NDArray[np.float64] = np.maximum(-np.asarray(result.ineqlin.marginals, dtype=np.float64), 0) / scale / size
    return found
