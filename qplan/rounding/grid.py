"""The grid of a format: per block a scale and a zero point, and rounding onto it.

Every function works on rows split in blocks: ``blocks [out, n_blocks, block]``, ``scale`` and ``zero``
``[out, n_blocks]``. A grid is always *storable*: its scales and zeros already have the format's width, and a
symmetric grid has zero 0 and one integer fewer.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from qplan.formats import QuantFormat
from qplan.rounding.codes import codes_of, extreme_levels, to_levels
from qplan.rounding.stored import IntTensor


@dataclass(frozen=True)
class Grid:
    """Scales and zero points of a matrix, storable in ``format``."""

    format: QuantFormat
    scale: Tensor
    """float32 ``[out, n_blocks]``."""
    zero: Tensor
    """float32 ``[out, n_blocks]``: the value of signed integer 0; zeros if symmetric."""

    def round(self, blocks: Tensor) -> Tensor:
        """Signed integers nearest to ``blocks [out, n_blocks, block]``, as float32."""
        return nearest(blocks, self.scale.unsqueeze(-1), self.zero.unsqueeze(-1), self.format)

    def values(self, signed: Tensor) -> Tensor:
        """What the engine computes with for signed integers ``[out, n_blocks, block]``."""
        return signed * self.scale.unsqueeze(-1) + self.zero.unsqueeze(-1)

    def store(self, signed: Tensor) -> IntTensor:
        """The matrix that holds signed integers ``[out, n_blocks, block]`` on this grid."""
        codes = codes_of(signed, self.format).reshape(signed.shape[0], -1)
        return IntTensor(self.format, codes, self.scale, None if self.format.symmetric else self.zero)


def nearest(values: Tensor, scale: Tensor, zero: Tensor, fmt: QuantFormat) -> Tensor:
    """Signed integers, as float32, nearest to ``values``; scale and zero broadcast against them."""
    divisor = torch.where(scale == 0, torch.ones_like(scale), scale)
    return to_levels(fmt)((values - zero) / divisor)


def storable(fmt: QuantFormat, scale: Tensor, zero: Tensor) -> Grid:
    """Round scales and zeros to the format's width; negative or tiny scales become 0."""
    scale = torch.nan_to_num(scale).clamp(min=0)
    zero = torch.zeros_like(scale) if fmt.symmetric else torch.nan_to_num(zero)
    if fmt.scale_bits == 16:
        limit = torch.finfo(torch.float16).max
        scale, zero = (a.clamp(-limit, limit).to(torch.float16).to(torch.float32) for a in (scale, zero))
    return Grid(fmt, scale, zero)


def full_range(blocks: Tensor, fmt: QuantFormat) -> Grid:
    """The grid that spans each block's range."""
    return spanning(blocks.amin(-1), blocks.amax(-1), fmt)


def spanning(low: Tensor, high: Tensor, fmt: QuantFormat, shrink: float | Tensor = 1.0) -> Grid:
    """The grid that spans ranges ``[out, n_blocks]``, shrunk about their middles; factors broadcast against them."""
    low_int, high_int = extreme_levels(fmt)
    if fmt.symmetric:
        scale = torch.maximum(high, -low) * shrink / high_int
        return storable(fmt, scale, torch.zeros_like(scale))
    scale = (high - low) * shrink / (high_int - low_int)
    middle = (high + low) / 2
    return storable(fmt, scale, middle - scale * (high_int + low_int) / 2)


def fit(blocks: Tensor, signed: Tensor, weight: Tensor, fmt: QuantFormat) -> Grid:
    """Least-squares scales and zeros for given integers, errors weighted by ``weight`` (broadcast to blocks).

    Minimizes ``sum w (x - q s - z)^2`` per block in closed form; degenerate blocks (all integers equal) keep a
    scale of 0 and take the weighted mean as zero.
    """
    weight = weight.expand_as(blocks)
    if fmt.symmetric:
        scale = (weight * signed * blocks).sum(-1) / (weight * signed * signed).sum(-1).clamp(min=1e-30)
        return storable(fmt, scale, torch.zeros_like(scale))
    total = weight.sum(-1).clamp(min=1e-30)
    mean_q, mean_x = (weight * signed).sum(-1) / total, (weight * blocks).sum(-1) / total
    centered = signed - mean_q.unsqueeze(-1)
    spread = (weight * centered * centered).sum(-1)
    cross = (weight * centered * (blocks - mean_x.unsqueeze(-1))).sum(-1)
    scale = torch.where(spread > 0, cross / spread.clamp(min=1e-30), torch.zeros_like(spread)).clamp(min=0)
    return storable(fmt, scale, mean_x - scale * mean_q)
