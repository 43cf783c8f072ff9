"""The int8 activations of MNN's CPU back end on ARM, in fp32 and in fp16 (``precision: low``).

Source: ``ConvInt8TiledExecutor.cpp``, ``CommonOptFunction.cpp``, ``MNNDynamicQuantFunctions.hpp``,
``MNNDynamicQuantFP32_Pack4.S`` and, for fp16, ``Arm82Functions.cpp``, ``Arm82OptFunc.cpp``,
``MNNDynamicQuantFP16_Pack8.S`` of MNN 3.6.1. Held against its aarch64 wheel under qemu, which computes integers and
IEEE floats as every processor does: reports/targets.

They differ from x86's (`qplan.rounding.activations`) in three ways. Codes are rounded with ties away from zero. Under
``dynamic_option`` 2 every token has the shift of x86's decoding: steps are counted from a rounded zero, and added to
the exact minimum. And in fp16, the factor and the zero point are rounded to fp16, as is every product and sum before
the code; a factor beyond fp16's range makes all codes the largest. What codes are taken back with stays fp32.
"""

from __future__ import annotations

import torch
from torch import Tensor

_STEPS = 255
_HIGHEST = 127
_LOWEST = -128

_FLAT = 1e-7
"""A range below this has no scale, unless activations have one for each block."""

_LANES = {False: 4, True: 8}
"""Features that are packed together in fp32 and in fp16: rows are padded with zeros, which count in a range."""


def arm_prefill(x: Tensor, *, half: bool) -> Tensor:
    """Activations ``[..., tokens, features]`` as the engine sees more than one token at a time with option 0.

    Symmetric per token: ``scale = max|x| / 127``.
    """
    x = _stored(x, half=half)
    peak = x.abs().amax(-1, keepdim=True)
    peak = torch.where(peak > 0, peak, torch.full_like(peak, _HIGHEST))
    return _codes(x, _HIGHEST / peak, None, half=half).mul_(peak / _HIGHEST)


def arm_decode(x: Tensor, *, half: bool) -> Tensor:
    """Activations ``[..., tokens, features]`` as the engine sees one token at a time with option 0.

    Asymmetric per token: ``scale = (max - min) / 255``; in fp16 the zero point is rounded, and taken back so.
    """
    x = _stored(x, half=half)
    low, high = x.amin(-1, keepdim=True), x.amax(-1, keepdim=True)
    if x.shape[-1] % _LANES[half]:
        low, high = low.clamp(max=0), high.clamp(min=0)
    span = high - low
    flat = span <= _FLAT
    span = torch.where(flat, torch.ones_like(span), span)
    scale, zero = span / _STEPS, -low * _STEPS / span
    zero = (_away_from_zero(zero) if half else zero) + _LOWEST
    offset = -zero * scale if half else low - _LOWEST * span / _STEPS
    seen = _codes(x, _STEPS / span, zero, half=half).mul_(scale).add_(offset)
    return torch.where(flat, high, seen)


def arm_blocks(x: Tensor, block: int, *, half: bool) -> Tensor:
    """Activations ``[..., tokens, features]`` as ``dynamic_option: 2`` makes them, of one token and of many.

    Args:
        x: exact activations.
        block: of the weights, divides ``features``; 0 for the whole row.
        half: whether the engine computes in fp16.
    """
    blocks = _stored(x, half=half).unflatten(-1, (-1, block or x.shape[-1]))
    low, high = blocks.amin(-1, keepdim=True), blocks.amax(-1, keepdim=True)
    flat = high <= low
    span = torch.where(flat, torch.ones_like(low), high - low)
    zero = _away_from_zero(-(_STEPS * low / span - _LOWEST))
    seen = _codes(blocks, _STEPS / span, zero, half=half).mul_(span / _STEPS).add_(low - _LOWEST * span / _STEPS)
    return torch.where(flat, high, seen).flatten(-2)


def _codes(x: Tensor, factor: Tensor, zero: Tensor | None, *, half: bool) -> Tensor:
    """Integers as floats: ``x * factor + zero`` rounded, ties away from zero, within 8 bits."""
    found = _stored(x * _stored(factor, half=half), half=half)
    if zero is not None:
        found = _stored(found.add_(_stored(zero, half=half)), half=half)
    return _away_from_zero(found.nan_to_num_(0.0)).clamp_(_LOWEST, _HIGHEST)


def _stored(x: Tensor, *, half: bool) -> Tensor:
    """Values as fp16 holds them, in float32."""
    return x.half().to(x.dtype) if half else x


def _away_from_zero(x: Tensor) -> Tensor:
    """Round to the nearest integers, ties away from zero."""
    whole = x.trunc()
    return whole.add_((x - whole).mul_(2).trunc_())
