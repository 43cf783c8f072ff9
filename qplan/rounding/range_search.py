"""Range search: the grid of each block that loses least, errors weighted by the inputs' second moments.

The loss of a row's rounding error e under inputs with second moments H is about ``sum_i H_ii e_i^2`` (AWQ's and
llama.cpp's importance weighting use the same diagonal). Candidates shrink the block's range; the best few steps
are refitted by weighted least squares, alternating with rounding.
"""

from __future__ import annotations

import torch
from torch import Tensor

from qplan.formats import QuantFormat
from qplan.rounding.curvature import Curvature
from qplan.rounding.grid import Grid, fit, spanning
from qplan.rounding.stored import IntTensor, StoredTensor, by_rows, store_float

_SHRINKS = {2: (0.4, 1.0, 16), 3: (0.5, 1.0, 16), 4: (0.6, 1.02, 15), 5: (0.75, 1.02, 10), 6: (0.85, 1.01, 9)}
"""Smallest and largest shrink factor and the number of factors, by bits; wide grids gain little by clipping."""

_REFITS = 3

_TOGETHER = 1 << 17
"""Weights, counted once for each candidate, up to which candidates are tried at the same time."""


def search_grid(blocks: Tensor, weight: Tensor, fmt: QuantFormat) -> Grid:
    """The best grid found for ``blocks [out, n_blocks, block]``.

    Args:
        blocks: float32 weights.
        weight: importance of each weight's squared error, broadcast to ``blocks``; not negative.
        fmt: an integer format.
    """
    low, high, count = _SHRINKS.get(fmt.bits, (0.93, 1.005, 7))
    shrinks = torch.tensor([1.0, *torch.linspace(low, high, count).tolist()], device=blocks.device).view(-1, 1, 1)
    smallest, largest = blocks.amin(-1), blocks.amax(-1)
    first, *others = shrinks.split(max(1, _TOGETHER // max(1, blocks.numel())))
    best, best_loss = _least(spanning(smallest, largest, fmt, first), blocks, weight)
    for some in others:
        best, best_loss = _better(best, best_loss, *_least(spanning(smallest, largest, fmt, some), blocks, weight))
    for _ in range(_REFITS):
        refitted = fit(blocks, best.round(blocks), weight, fmt)
        best, best_loss = _better(best, best_loss, refitted, _loss(refitted, blocks, weight))
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


def _least(grids: Grid, blocks: Tensor, weight: Tensor) -> tuple[Grid, Tensor]:
    """Of grids whose scales are ``[candidates, out, n_blocks]``, each block's first with the least loss; the losses."""
    loss, where = _loss(grids, blocks, weight).min(0)
    scale, zero = (values.gather(0, where.unsqueeze(0)).squeeze(0) for values in (grids.scale, grids.zero))
    return Grid(grids.format, scale, zero), loss


def _better(best: Grid, best_loss: Tensor, other: Grid, loss: Tensor) -> tuple[Grid, Tensor]:
    wins = loss < best_loss
    scale, zero = torch.where(wins, other.scale, best.scale), torch.where(wins, other.zero, best.zero)
    return Grid(best.format, scale, zero), torch.where(wins, loss, best_loss)
