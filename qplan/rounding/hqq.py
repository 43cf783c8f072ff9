"""Half-Quadratic Quantization (Badri & Shaji, 2023, https://mobiusml.github.io/hqq_blog/) on MNN's block grids.

Fits a block's grid to its weights without any calibration: minimizes the ``l_p`` norm, ``p < 1``, of the rounding
errors, which forgives outliers. An auxiliary ``e`` takes the place of the errors (half-quadratic splitting), with
``beta`` the price of their difference; both subproblems have closed solutions:

- ``e = shrink(w - dequantized w)``, the generalized soft threshold ``sign(x) relu(|x| - |x|^(p-1) / beta)``;
- the zero point: the mean over the block of what is left, ``(w - e) - s q``.

The published method keeps the scale at the full range. A symmetric grid has no zero point, so the same split is
solved for the scale there, by least squares.
"""

from __future__ import annotations

import torch
from torch import Tensor

from qplan.formats import QuantFormat
from qplan.rounding.grid import Grid, full_range, storable
from qplan.rounding.stored import IntTensor, StoredTensor, by_rows, store_float

_NORM, _BETA, _KAPPA, _ITERATIONS = 0.7, 10.0, 1.01, 20
"""``p``, the first ``beta``, its growth per iteration and their number: the authors' defaults."""


def hqq(weight: Tensor, fmt: QuantFormat) -> StoredTensor:
    """Store ``weight [out, in]`` on grids that the half-quadratic solver finds.

    Every block keeps the iteration with the least mean absolute error and is at worst rounded to nearest.

    Args:
        weight: the matrix.
        fmt: any format; floats are stored as they are.
    """
    if fmt.is_float:
        return store_float(weight, fmt)
    return by_rows(weight, lambda rows: _solve(rows.reshape(len(rows), -1, fmt.block_size(rows.shape[1])), fmt))


def _solve(blocks: Tensor, fmt: QuantFormat) -> IntTensor:
    grid = best = full_range(blocks, fmt)
    least = _mean_error(best, blocks)
    beta = _BETA
    for _ in range(_ITERATIONS):
        grid = _step(grid, blocks, beta)
        beta *= _KAPPA
        error = _mean_error(grid, blocks)
        wins = error < least
        if not wins.any():
            break
        best = Grid(fmt, torch.where(wins, grid.scale, best.scale), torch.where(wins, grid.zero, best.zero))
        least = torch.where(wins, error, least)
    return best.store(best.round(blocks))


def _step(grid: Grid, blocks: Tensor, beta: float) -> Grid:
    signed = grid.round(blocks)
    kept = blocks - _shrink(blocks - grid.values(signed), beta)
    if grid.format.symmetric:
        square = (signed * signed).sum(-1)
        scale = (kept * signed).sum(-1) / square.clamp(min=1)
        return storable(grid.format, torch.where(square > 0, scale, grid.scale), grid.zero)
    return storable(grid.format, grid.scale, (kept - signed * grid.scale.unsqueeze(-1)).mean(-1))


def _shrink(errors: Tensor, beta: float) -> Tensor:
    size = errors.abs()
    return errors.sign() * (size - size.pow(_NORM - 1) / beta).clamp(min=0)


def _mean_error(grid: Grid, blocks: Tensor) -> Tensor:
    return (blocks - grid.values(grid.round(blocks))).abs().mean(-1)
