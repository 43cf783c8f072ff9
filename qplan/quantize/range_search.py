"""Range search: the grid of each block that loses least, errors weighted by the inputs' second moments.

The loss of a row's rounding error e under inputs with second moments H is about ``sum_i H_ii e_i^2`` (AWQ's and
llama.cpp's importance weighting use the same diagonal). Candidates shrink the block's range; the best few steps
are refitted by weighted least squares, alternating with rounding.
"""

from __future__ import annotations

import torch
from torch import Tensor

from qplan.formats import QuantFormat
from qplan.quantize.curvature import Curvature
from qplan.quantize.grid import Grid, fit, full_range
from qplan.quantize.stored import IntTensor, StoredTensor, by_rows, store_float

_SHRINKS = {2: (0.4, 1.0, 16), 3: (0.5, 1.0, 16), 4: (0.6, 1.02, 15), 5: (0.75, 1.02, 10), 6: (0.85, 1.01, 9)}
"""Smallest and largest shrink factor and the number of factors, by bits; wide grids gain little by clipping."""

_REFITS = 3


def search_grid(blocks: Tensor, weight: Tensor, fmt: QuantFormat) -> Grid:
    """The best grid found for ``blocks [out, n_blocks, block]``.

    Args:
        blocks: float32 weights.
        weight: importance of each weight's squared error, broadcast to ``blocks``; not negative.
        fmt: an integer format.
    """
    low, high, count = _SHRINKS.get(fmt.bits, (0.93, 1.005, 7))
    best = full_range(blocks, fmt)
    best_loss = _loss(best, blocks, weight)
    for shrink in torch.linspace(low, high, count).tolist():
        best, best_loss = _better(best, best_loss, full_range(blocks, fmt, shrink=shrink), blocks, weight)
    for _ in range(_REFITS):
        refitted = fit(blocks, best.round(blocks), weight, fmt)
        best, best_loss = _better(best, best_loss, refitted, blocks, weight)
    return best


def range_search(weight: Tensor, fmt: QuantFormat, curvature: Curvature) -> StoredTensor:
    """Store ``weight [out, in]`` by rounding to nearest on searched grids.

    Args:
        weight: the matrix.
        fmt: any format; floats are stored as they are.
        curvature: of the inputs; only their mean squares count.
    """
    if fmt.is_float:
        return store_float(weight, fmt)
    size = fmt.block_size(weight.shape[1])
    importance = curvature.mean_squares.reshape(1, -1, size)

    def store(rows: Tensor) -> IntTensor:
        blocks = rows.reshape(len(rows), -1, size)
        grid = search_grid(blocks, importance, fmt)
        return grid.store(grid.round(blocks))

    return by_rows(weight, store)


def _loss(grid: Grid, blocks: Tensor, weight: Tensor) -> Tensor:
    error = blocks - grid.values(grid.round(blocks))
    return (weight * error * error).sum(-1)


def _better(best: Grid, best_loss: Tensor, other: Grid, blocks: Tensor, weight: Tensor) -> tuple[Grid, Tensor]:
    loss = _loss(other, blocks, weight)
    wins = loss < best_loss
    scale, zero = torch.where(wins, other.scale, best.scale), torch.where(wins, other.zero, best.zero)
    return Grid(best.format, scale, zero), torch.where(wins, loss, best_loss)
