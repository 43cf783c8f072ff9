"""What the quantizer of ``llmexport --hqq`` computes (`utils/hqq_quantizer.py` of llmexport 0.0.5 and of MNN's master).

It is not `qplan.rounding.hqq`, which follows the publication. Theirs decides for a matrix as a whole when to stop; by
an error that compares weights with zero points, if the format has zero points; without the signs of the errors that
are shrunk; with a ``beta`` that does not grow. It begins at a rounded zero point, takes a step of 1 where a block spans
less than 1e-4, and no step below 5e-5. Symmetric formats use the level that has no opposite.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from qplan.formats import QuantFormat
from qplan.rounding.codes import codes_of
from qplan.rounding.stored import CACHED_ELEMENTS, IntTensor, StoredTensor, store_float

_NORM, _BETA, _ITERATIONS = 0.7, 10.0, 20
_LEAST_RANGE, _MOST_STEPS, _EPSILON = 1e-4, 2e4, 1e-8
"""Ranges below the first get one step per unit, and none gets more steps per unit than the second."""


def exported_hqq(weight: Tensor, fmt: QuantFormat) -> StoredTensor:
    """Store ``weight [out, in]``, the whole matrix, as ``llmexport --hqq`` does.

    Args:
        weight: the matrix; when to stop depends on all of its rows.
        fmt: any format; floats are stored as they are.
    """
    if fmt.is_float:
        return store_float(weight, fmt)
    blocks = weight.to(torch.float32).reshape(len(weight), -1, fmt.block_size(weight.shape[1]))
    steps, offset = _optimized(blocks, fmt)
    scale = 1.0 / steps
    zero = None if offset is None else scale * -fmt.levels[0] - scale * offset
    codes = torch.cat(
        [
            codes_of(_rounded(blocks[rows], steps[rows], None if offset is None else offset[rows], fmt), fmt)
            for rows in _pieces(blocks)
        ]
    )
    return IntTensor(fmt, codes.view(weight.shape), _stored(scale, fmt), None if zero is None else _stored(zero, fmt))


def _optimized(blocks: Tensor, fmt: QuantFormat) -> tuple[Tensor, Tensor | None]:
    """Steps per unit ``[out, blocks, 1]``, and the code of zero, which need not be whole; None if symmetric."""
    steps, offset = _full_range(blocks, fmt)
    best, least = (steps, offset), torch.inf
    for _ in range(_ITERATIONS):
        found = [
            _step(blocks[rows], steps[rows], None if offset is None else offset[rows], fmt) for rows in _pieces(blocks)
        ]
        error = sum(float(part) for _, part in found) / blocks.numel()
        new = torch.cat([value for value, _ in found])
        if not error < least or bool(new.isnan().any()):
            break
        steps, offset = (new, None) if offset is None else (steps, new)
        best, least = (steps, offset), error
    return best


def _full_range(blocks: Tensor, fmt: QuantFormat) -> tuple[Tensor, Tensor | None]:
    low, high = blocks.amin(-1, keepdim=True), blocks.amax(-1, keepdim=True)
    span = torch.maximum(low.abs(), high.abs()) if fmt.symmetric else high - low
    most = fmt.levels[-1] if fmt.symmetric else len(fmt.levels) - 1
    steps = torch.where(span <= _LEAST_RANGE, 1.0, most / span).clamp(max=_MOST_STEPS)
    return steps, None if fmt.symmetric else torch.round(-low * steps)


def _step(blocks: Tensor, steps: Tensor, offset: Tensor | None, fmt: QuantFormat) -> tuple[Tensor, Tensor]:
    """The next zero codes, or the next steps of a symmetric format, and the sum of what is taken for errors."""
    signed = _rounded(blocks, steps, offset, fmt)
    divisor = torch.where(steps < _EPSILON, _EPSILON, steps)
    if offset is None:
        read = signed / divisor
        kept = blocks - _shrunk(blocks - read)
        fitted = (signed**2).sum(-1, keepdim=True) / ((kept * signed).sum(-1, keepdim=True) + _EPSILON)
        return fitted.clamp(min=_EPSILON), (blocks - read).abs().sum(dtype=torch.float64)
    codes = signed - fmt.levels[0]
    kept = blocks - _shrunk(blocks - (codes - offset) / divisor)
    zeros = codes - kept * steps
    return zeros.mean(-1, keepdim=True), (blocks - zeros).abs().sum(dtype=torch.float64)


def _rounded(blocks: Tensor, steps: Tensor, offset: Tensor | None, fmt: QuantFormat) -> Tensor:
    """Levels of weights."""
    low, high = fmt.levels[0], fmt.levels[-1]
    if offset is None:
        return torch.round(blocks * steps).clamp_(low, high)
    return torch.round(blocks * steps + offset).clamp_(0, high - low).add_(low)


def _shrunk(errors: Tensor) -> Tensor:
    size = errors.abs()
    return (size - size.pow(_NORM - 1) * (1 / _BETA)).clamp_(min=0)


def _pieces(blocks: Tensor) -> Iterator[slice]:
    """Rows to work on at a time, as many as a processor's cache holds."""
    rows = max(1, CACHED_ELEMENTS // blocks[0].numel())
    return (slice(start, start + rows) for start in range(0, len(blocks), rows))


def _stored(alpha: Tensor, fmt: QuantFormat) -> Tensor:
    alpha = alpha.squeeze(-1)
    return alpha.to(torch.float16).to(torch.float32) if fmt.scale_bits == 16 else alpha
