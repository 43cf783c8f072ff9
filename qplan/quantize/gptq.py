"""GPTQ (Frantar et al., arXiv 2210.17323) on MNN's block grids, and refinement of its result.

Minimises ``tr(E H E')`` for the rounding error ``E [out, in]`` and the inputs' second moments
``H = X'X / tokens [in, in]``: columns are rounded one by one, each error spread over the columns that follow.
A block's grid is searched when its first column is reached, on the weights as corrected so far. Afterwards
coordinate descent over the integers (QuantEase, arXiv 2309.01885) and least-squares refits of the grid alternate.
"""

from __future__ import annotations

import torch
from torch import Tensor

from qplan.errors import MeasurementError
from qplan.formats import QuantFormat
from qplan.quantize.grid import Grid, nearest, storable
from qplan.quantize.range_search import search_grid
from qplan.quantize.stored import StoredTensor, store_float

DAMPING = 0.01
"""Part of the mean diagonal that is added to H before it is inverted, as in the paper."""


def damped(hessian: Tensor, damping: float = DAMPING) -> Tensor:
    """H with ``damping`` times its mean diagonal added; features that never fired get that mean alone."""
    mean = hessian.diagonal().mean()
    if not torch.isfinite(mean) or mean <= 0:
        msg = f"inputs with a mean square of {float(mean)}: no calibration token reached this layer"
        raise MeasurementError(msg)
    return hessian + torch.eye(len(hessian), dtype=hessian.dtype, device=hessian.device) * (damping * mean)


def inverse_factor(hessian: Tensor) -> Tensor:
    """Upper Cholesky factor of H's inverse, float32 ``[in, in]``: row j tells how column j's error is spread."""
    lower = torch.linalg.cholesky(hessian.to(torch.float64))
    inverse = torch.cholesky_inverse(lower)
    upper: Tensor = torch.linalg.cholesky(inverse, upper=True)
    return upper.to(torch.float32)


def gptq(weight: Tensor, fmt: QuantFormat, hessian: Tensor, *, sweeps: int = 3) -> StoredTensor:
    """Store ``weight [out, in]`` with the error feedback of GPTQ, then ``sweeps`` of coordinate descent and refit.

    Args:
        weight: the matrix.
        fmt: any format; floats are stored as they are.
        hessian: second moments of the inputs, ``[in, in]``, not damped.
        sweeps: passes of refinement after GPTQ; each costs about as much as GPTQ itself.

    Raises:
        MeasurementError: no calibration token reached the layer.
    """
    if fmt.is_float:
        return store_float(weight, fmt)
    weight, regular = weight.to(torch.float32), damped(hessian.to(torch.float32))
    grid, signed = _feedback(weight, fmt, inverse_factor(regular), regular.diagonal())
    for _ in range(sweeps):
        grid = _refit(weight, signed, grid, regular)
        signed = _descend(weight, signed, grid, regular)
    return grid.store(signed)


def _feedback(weight: Tensor, fmt: QuantFormat, factor: Tensor, importance: Tensor) -> tuple[Grid, Tensor]:
    out_features, in_features = weight.shape
    size = fmt.block_size(in_features)
    work = weight.clone()
    signed = torch.empty_like(work)
    scales, zeros = [], []
    for start in range(0, in_features, size):
        stop = start + size
        block = work[:, start:stop]
        grid = search_grid(block.unsqueeze(1), importance[start:stop].view(1, 1, -1), fmt)
        scales.append(grid.scale)
        zeros.append(grid.zero)
        errors = torch.empty_like(block)
        for column in range(size):
            here = start + column
            values = block[:, column : column + 1]
            codes = nearest(values, grid.scale, grid.zero, fmt)
            signed[:, here : here + 1] = codes
            error = (values - (codes * grid.scale + grid.zero)) / factor[here, here]
            errors[:, column : column + 1] = error
            block[:, column + 1 :] -= error * factor[here, here + 1 : stop]
        work[:, stop:] -= errors @ factor[start:stop, stop:]
    return Grid(fmt, torch.cat(scales, 1), torch.cat(zeros, 1)), signed.view(out_features, -1, size)


def _refit(weight: Tensor, signed: Tensor, grid: Grid, hessian: Tensor) -> Grid:
    """Refit block by block under the full H: each block's target carries the other blocks' errors."""
    out_features, n_blocks, size = signed.shape
    scale, zero = grid.scale.clone(), grid.zero.clone()
    residual = weight - grid.values(signed).view(out_features, -1)
    for index in range(n_blocks):
        span = slice(index * size, (index + 1) * size)
        local, codes = hessian[span, span], signed[:, index]
        old = codes * scale[:, index : index + 1] + zero[:, index : index + 1]
        pull = residual @ hessian[:, span]
        fresh = _solve_block(codes, pull + old @ local, local, grid.format)
        step = codes * fresh.scale + fresh.zero - old
        # rounding the scales to their storage width can undo the gain
        better = ((step @ local) * step).sum(1) < 2 * (step * pull).sum(1)
        scale[:, index] = torch.where(better, fresh.scale.squeeze(1), scale[:, index])
        zero[:, index] = torch.where(better, fresh.zero.squeeze(1), zero[:, index])
        residual[:, span] -= step * better.unsqueeze(1)
    return Grid(grid.format, scale, zero)


def _solve_block(codes: Tensor, pull: Tensor, local: Tensor, fmt: QuantFormat) -> Grid:
    """Scales and zeros ``[out, 1]`` that minimise the quadratic ``v H v' - 2 v pull'`` for ``v = q s + z``."""
    weighted = codes @ local
    qq, q1, qp = (weighted * codes).sum(1), weighted.sum(1), (codes * pull).sum(1)
    if fmt.symmetric:
        scale = (qp / qq.clamp(min=1e-30)).unsqueeze(1)
        return storable(fmt, scale, torch.zeros_like(scale))
    ones, p1 = local.sum(), pull.sum(1)
    determinant = qq * ones - q1 * q1
    safe = determinant > 1e-6 * qq * ones
    divisor = torch.where(safe, determinant, torch.ones_like(determinant))
    scale = torch.where(safe, (qp * ones - p1 * q1) / divisor, torch.zeros_like(qp)).clamp(min=0)
    zero = (p1 - scale * q1) / ones
    return storable(fmt, scale.unsqueeze(1), zero.unsqueeze(1))


def _descend(weight: Tensor, signed: Tensor, grid: Grid, hessian: Tensor) -> Tensor:
    """One pass of coordinate descent: every integer in turn takes its best value, all others fixed."""
    out_features, n_blocks, size = signed.shape
    signed = signed.clone()
    residual = weight - grid.values(signed).view(out_features, -1)
    diagonal = hessian.diagonal()
    for index in range(n_blocks):
        span = slice(index * size, (index + 1) * size)
        local = hessian[span, span]
        pull = residual @ hessian[:, span]
        scale, zero = grid.scale[:, index : index + 1], grid.zero[:, index : index + 1]
        before = signed[:, index] * scale + zero
        for column in range(size):
            codes = signed[:, index, column : column + 1]
            target = codes * scale + zero + pull[:, column : column + 1] / diagonal[span][column]
            fresh = nearest(target, scale, zero, grid.format)
            step = (fresh - codes) * scale
            signed[:, index, column : column + 1] = fresh
            pull -= step * local[column : column + 1]
        residual[:, span] -= signed[:, index] * scale + zero - before
    return signed
