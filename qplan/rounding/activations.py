"""The int8 activations that MNN's CPU back end computes with under ``memory: low``.

Source: ``ConvInt8TiledExecutor.cpp``, ``CommonOptFunction.cpp`` and ``x86_64/avx/GemmAVX2.cpp`` of MNN 3.6.1's CPU back
end. Its PyPI wheel has AVX2 kernels and none for AVX512: the arithmetic here was measured to be that of the wheel
on x86. ARM's is in `qplan.rounding.arm_activations`. Ops with fp16 weights keep float activations.

``dynamic_option`` 0 gives every token one scale, 2 one to every token and block of the weights. For matrix products 1
is the same as 0, and 8 added to either concerns ARM's SME2 only. It is a setting of the runtime: no op has its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from qplan.errors import InputError
from qplan.formats import QuantFormat
from qplan.rounding.arm_activations import arm_blocks, arm_decode, arm_prefill
from qplan.settings import Arithmetic, DynamicOption

EnginePath = Literal["prefill", "decode"]
"""Many tokens at a time, or one."""

_LANES = 8
"""Features that the engine packs together; rows are padded with zeros, which count when a range is taken."""

_TILE = 4
"""Tokens that the engine computes together; those left over at the end of a prompt take another branch."""

_FLAT = 1e-7
"""A range below this has no scale: all features become the largest."""


@dataclass(frozen=True)
class Int8Activations:
    """Which of the engine's ways to round activations to int8 is emulated."""

    path: EnginePath = "prefill"
    dynamic_option: DynamicOption = 0
    arithmetic: Arithmetic = "x86"
    """The back end's; ``float`` leaves activations as they are."""

    @property
    def half(self) -> bool:
        """Whether the back end computes everything in fp16."""
        return self.arithmetic == "arm-fp16"

    def block(self, fmt: QuantFormat) -> int:
        """Input features that share a scale where weights have a format; 0 is the whole row.

        Raises:
            InputError: blocks that the engine garbles.
        """
        if self.dynamic_option == 0 or fmt.is_float:
            return 0
        if not fmt.allows_block_activations:
            msg = (
                f"{fmt} under dynamic_option 2 is garbage on the engine: blocks of {fmt.block} weights cut through the "
                "16 features that it packs together; use multiples of 16, a whole row, or dynamic_option 0"
            )
            raise InputError(msg)
        return fmt.block

    def round(self, x: Tensor, block: int = 0, *, routed: bool = False) -> Tensor:
        """Activations ``[..., tokens, features]`` as the engine sees them; ``tokens`` are one sequence.

        Args:
            x: exact activations.
            block: see `block`.
            routed: whether they are an expert's: each sequence's own tokens come first, then tokens of zeros that the
                engine does not see. An expert that gets a single token of a prompt computes as in decode.
        """
        if self.arithmetic == "float":
            return x
        if routed and self.path == "prefill":
            return self._round_routed(x, block)
        if self.dynamic_option == 2:
            return self._many_by_blocks(x, block) if self.path == "prefill" else self._few_by_blocks(x, block)
        return self._many(x) if self.path == "prefill" else self._few(x)

    def _many(self, x: Tensor) -> Tensor:
        return int8_prefill(x) if self.arithmetic == "x86" else arm_prefill(x, half=self.half)

    def _few(self, x: Tensor) -> Tensor:
        return int8_decode(x) if self.arithmetic == "x86" else arm_decode(x, half=self.half)

    def _many_by_blocks(self, x: Tensor, block: int) -> Tensor:
        return int8_block_prefill(x, block) if self.arithmetic == "x86" else arm_blocks(x, block, half=self.half)

    def _few_by_blocks(self, x: Tensor, block: int) -> Tensor:
        return int8_block_decode(x, block) if self.arithmetic == "x86" else arm_blocks(x, block, half=self.half)

    def _round_routed(self, x: Tensor, block: int) -> Tensor:
        counts = x.any(-1).sum(-1).unsqueeze(-1)
        if self.dynamic_option == 2:
            tiled = torch.arange(x.shape[-2], device=x.device) < counts // _TILE * _TILE
            few = self._few_by_blocks(x, block)
            blocks = x.unflatten(-1, (-1, block or x.shape[-1]))
            many = _asymmetric(blocks).flatten(-2) if self.arithmetic == "x86" else few
        else:
            tiled = counts > 1
            many, few = self._many(x), self._few(x)
        return torch.where(tiled.unsqueeze(-1), many, few)


def int8_prefill(x: Tensor) -> Tensor:
    """Activations ``[..., tokens, features]`` as the engine sees more than one token at a time.

    Symmetric per token over all features: ``scale = max|x| / 127``.
    """
    scale = torch.maximum(-x.amin(-1, keepdim=True), x.amax(-1, keepdim=True)) / 127
    divisor = torch.where(scale == 0, torch.ones_like(scale), scale)
    # in place: new memory for each step would cost as much as the step
    return (x / divisor).round_().clamp_(-127, 127).mul_(scale)


def int8_decode(x: Tensor) -> Tensor:
    """Activations ``[..., tokens, features]`` as the engine sees one token at a time.

    Asymmetric per token over all features: ``scale = (max - min) / 255``.
    """
    return _asymmetric(x)


def int8_block_prefill(x: Tensor, block: int) -> Tensor:
    """Activations ``[..., tokens, features]`` as ``dynamic_option: 2`` makes them of more than one token at a time.

    Asymmetric per token and block. Tokens that do not fill a tile of four at the sequence's end are as in decode.

    Args:
        x: exact activations.
        block: of the weights, divides ``features``; 0 for the whole row.
    """
    whole = x.shape[-2] // _TILE * _TILE
    blocks = x.unflatten(-1, (-1, block or x.shape[-1]))
    parts = (_asymmetric(blocks[..., :whole, :, :]), _asymmetric(blocks[..., whole:, :, :], shifted=True))
    return torch.cat(parts, -3).flatten(-2)


def int8_block_decode(x: Tensor, block: int) -> Tensor:
    """Activations ``[..., tokens, features]`` as ``dynamic_option: 2`` makes them of one token at a time.

    The engine counts steps from the nearest multiple of the scale but adds them to the exact minimum, so that
    all features of a block are off by the same part of a step, up to half: more loss than a step's rounding alone.

    Args:
        x: exact activations.
        block: of the weights, divides ``features``; 0 for the whole row.
    """
    return _asymmetric(x.unflatten(-1, (-1, block or x.shape[-1])), shifted=True).flatten(-2)


def _asymmetric(x: Tensor, *, shifted: bool = False) -> Tensor:
    """Round to 256 values over the range of the last dimension.

    Args:
        x: exact values.
        shifted: whether steps are counted from a rounded zero, see `int8_block_decode`.
    """
    low, high = x.amin(-1, keepdim=True), x.amax(-1, keepdim=True)
    if x.shape[-1] % _LANES:
        low, high = low.clamp(max=0), high.clamp(min=0)
    flat = high - low <= _FLAT
    scale = torch.where(flat, torch.ones_like(low), (high - low) / 255)
    steps_to_zero = -low / scale
    if shifted:
        steps_to_zero = torch.round(steps_to_zero)
    seen = (x / scale).add_(steps_to_zero).round_().clamp_(0, 255).mul_(scale).add_(low)
    return torch.where(flat, high, seen)
