"""Round to nearest as MNN's exporter does it (`utils/torch_utils.py: quant`), bit for bit."""

from __future__ import annotations

import torch
from torch import Tensor

from qplan.errors import InputError
from qplan.formats import QuantFormat
from qplan.model.finite import all_finite
from qplan.rounding.codes import codes_of
from qplan.rounding.stored import IntTensor, StoredTensor, by_rows, store_float


def rtn(weight: Tensor, fmt: QuantFormat) -> StoredTensor:
    """Store ``weight [out, in]`` in ``fmt`` by rounding to nearest.

    Asymmetric: ``scale = (max - min) / (2^bits - 1)``, ``q = round((w - min) / scale) - n``, zero ``min + n * scale``
    with ``n = 2^(bits-1)``. Symmetric: ``scale = max|w| / (n - 1)``, ``q = round(w / scale)`` in ``±(n - 1)``.
    Integers are chosen with unrounded scales and the scales rounded afterwards, like the exporter.

    Raises:
        InputError: the block does not divide the rows, or the weights are not finite.
    """
    if fmt.is_float:
        return store_float(weight, fmt)
    in_features = weight.shape[1]
    if not fmt.divides(in_features):
        msg = f"{fmt}: blocks of {fmt.block} do not divide rows of {in_features}; use block 0 or a divisor"
        raise InputError(msg)
    return by_rows(weight, lambda rows: _stored(rows, fmt))


def _stored(rows: Tensor, fmt: QuantFormat) -> IntTensor:
    out_features, in_features = rows.shape
    blocks = rows.reshape(out_features, -1, fmt.block_size(in_features))
    if not all_finite(blocks):
        msg = "weights hold NaN or infinite values; the checkpoint is broken"
        raise InputError(msg)
    quantize = _symmetric if fmt.symmetric else _asymmetric
    signed, scale, zero = quantize(blocks, -fmt.levels[0])
    return IntTensor(
        fmt,
        codes_of(signed, fmt).view(out_features, in_features),
        _round_alpha(scale, fmt),
        None if zero is None else _round_alpha(zero, fmt),
    )


def _asymmetric(blocks: Tensor, half: int) -> tuple[Tensor, Tensor, Tensor | None]:
    low, high = blocks.amin(-1, keepdim=True), blocks.amax(-1, keepdim=True)
    scale = (high - low) / (2 * half - 1)
    # a constant block has scale 0: its zero point alone is exact
    divisor = torch.where(scale == 0, torch.ones_like(scale), scale)
    signed = (torch.round((blocks - low) / divisor) - half).clamp(-half, half - 1)
    return signed, scale.squeeze(-1), (low + scale * half).squeeze(-1)


def _symmetric(blocks: Tensor, half: int) -> tuple[Tensor, Tensor, Tensor | None]:
    scale = blocks.abs().amax(-1, keepdim=True) / (half - 1)
    divisor = torch.where(scale == 0, torch.ones_like(scale), scale)
    signed = torch.round(blocks / divisor).clamp(-(half - 1), half - 1)
    return signed, scale.squeeze(-1), None


def _round_alpha(alpha: Tensor, fmt: QuantFormat) -> Tensor:
    return alpha.to(torch.float16).to(torch.float32) if fmt.scale_bits == 16 else alpha
