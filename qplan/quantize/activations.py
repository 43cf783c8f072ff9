"""The int8 activations that MNN's CPU back end computes with under ``memory: low``.

Source: ``source/backend/cpu/compute/ConvInt8TiledExecutor.cpp`` and ``CommonOptFunction.cpp`` of MNN 3.6.1.
Ops with fp16 weights keep float activations.
"""

from __future__ import annotations

import torch
from torch import Tensor


def int8_prefill(x: Tensor) -> Tensor:
    """Activations ``[..., tokens, features]`` as the engine sees more than one token at a time.

    Symmetric per token over all features: ``scale = max|x| / 127``.
    """
    scale = x.abs().amax(-1, keepdim=True) / 127
    divisor = torch.where(scale == 0, torch.ones_like(scale), scale)
    return torch.round(x / divisor).clamp(-127, 127) * scale


def int8_decode(x: Tensor) -> Tensor:
    """Activations ``[..., tokens, features]`` as the engine sees one token at a time.

    Asymmetric per token over all features: ``scale = (max - min) / 255``.
    """
    low, high = x.amin(-1, keepdim=True), x.amax(-1, keepdim=True)
    scale = (high - low) / 255
    divisor = torch.where(scale == 0, torch.ones_like(scale), scale)
    zero = -low / divisor - 128
    codes = torch.round(x / divisor + zero).clamp(-128, 127)
    return torch.where(scale == 0, x, (codes - zero) * scale)
