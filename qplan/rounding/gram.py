"""Products ``X'X`` in little time and memory: of wide ones only the blocks above the diagonal are computed."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

_BLOCK = 512
"""Columns of a block; narrower matrices are one product."""


def gram(rows: Tensor) -> Tensor:
    """``X'X [in, in]`` of ``rows [tokens, in]``, in their type."""
    total = rows.new_zeros(rows.shape[1], rows.shape[1])
    add_gram(total, rows)
    return mirrored(total)


def add_gram(total: Tensor, rows: Tensor) -> None:
    """Add the blocks of ``X'X`` that are not below the diagonal to ``total [in, in]``, whatever its type and device."""
    for span in _spans(rows.shape[1]):
        total[span, span.start :] += (rows[:, span].T @ rows[:, span.start :]).to(total)


def mirrored(total: Tensor) -> Tensor:
    """Fill the blocks below the diagonal, in place."""
    for span in _spans(len(total)):
        total[span.stop :, span] = total[span, span.stop :].T
    return total


def by_rows(total: Tensor, divisor: float) -> Tensor:
    """``total / divisor`` in float32, without a copy in another type."""
    found = torch.empty(total.shape, dtype=torch.float32, device=total.device)
    for span in _spans(len(total)):
        found[span] = total[span] / divisor
    return found


def divided(matrix: Tensor, columns: Tensor, *, out: Tensor | None = None) -> Tensor:
    """Moments ``[in, in]`` of inputs that are divided by ``columns [in]``, without a third matrix.

    Args:
        matrix: moments of the inputs as they are.
        columns: the factors.
        out: where to write them, which may be ``matrix``; None for new memory.
    """
    found = torch.empty_like(matrix) if out is None else out
    for span in _spans(len(matrix)):
        torch.div(matrix[span], columns[span].outer(columns).to(matrix), out=found[span])
    return found


def _spans(width: int) -> Iterator[slice]:
    for start in range(0, width, _BLOCK):
        yield slice(start, min(start + _BLOCK, width))
