"""Products of floats in fp16, in the order in which MNN adds them up on ARM.

Source: ``MNNPackedMatMulFP16.S``, ``StrassenMatmulComputor.cpp``, ``Convolution1x1Strassen.cpp`` of MNN 3.6.1. Terms
are added one after the other by fused multiplications and additions. Long sums are cut into pieces, and large products
of many tokens go through Strassen's algorithm in Winograd's form, whose sums of blocks are rounded to fp16 too: where a
few inputs are much larger than the others, that loses more than all the rest.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

_TOKENS, _OUTPUTS, _PACK = 12, 16, 8
"""Tokens, output features and input features that a kernel works on together."""

_CACHE = 32768
"""Numbers of a tile of inputs and weights: longer sums are cut."""

_PENALTY = 2.0
"""What the engine takes a number to cost that Strassen's sums read or write, in products."""

_DEPTH = 5

_ACCUMULATED = 1 << 20
"""Accumulators that are updated at a time: they stay in cache over all terms."""


def accumulate_half(inputs: Tensor, weight: Tensor, *, together: bool = False) -> Tensor:
    """``inputs [..., tokens, n] @ weight [m, n].T`` in fp16.

    Args:
        inputs: rounded to fp16 first.
        weight: likewise.
        together: whether tokens of a sequence are computed together, as in a prefill, and not one by one.

    Returns:
        Values of fp16 in the type of the inputs.
    """
    factors = weight.half().T.contiguous()
    rows = inputs.half().reshape(-1, *inputs.shape[-2:]) if together else inputs.half().reshape(1, -1, inputs.shape[-1])
    # a token by itself has room for longer sums
    product = _strassen if together else partial(_cut, tile=1)
    found = torch.stack([product(row.contiguous(), factors) for row in rows])
    return found.to(inputs.dtype).view(*inputs.shape[:-1], len(weight))


def _strassen(left: Tensor, right: Tensor, depth: int = 0) -> Tensor:
    """``left [tokens, n] @ right [n, m]``, by blocks as far as the engine finds that to pay."""
    tokens, terms = left.shape
    outputs = right.shape[1]
    some, half, part = tokens // _TOKENS // 2 * _TOKENS, terms // 2, outputs // _OUTPUTS // 2 * _OUTPUTS
    if depth >= _DEPTH or not some or not part or terms % (2 * _PACK) or not _pays(tokens, some, half, part):
        return _cut(left, right)
    a11, a12 = left[:some, :half], left[:some, half:]
    a21, a22 = left[some : 2 * some, :half], left[some : 2 * some, half:]
    b11, b12 = right[:half, :part], right[:half, part : 2 * part]
    b21, b22 = right[half:, :part], right[half:, part : 2 * part]
    times = partial(_strassen, depth=depth + 1)
    s1, t1 = a21 + a22, b12 - b11
    s2, t2 = s1 - a11, b22 - t1
    p1, p2 = times(a11, b11), times(a12, b21)
    p3, p4 = times(a12 - s2, b22), times(a22, t2 - b21)
    p5, p6, p7 = times(s1, t1), times(s2, t2), times(a11 - a21, b22 - b12)
    u2 = p1 + p6
    u3, u4 = u2 + p7, u2 + p5
    blocks = torch.cat((torch.cat((p1 + p2, u4 + p3), 1), torch.cat((u3 - p4, u3 + p5), 1)))
    if 2 * part < outputs:
        blocks = torch.cat((blocks, _cut(left[: 2 * some], right[:, 2 * part :])), 1)
    return torch.cat((blocks, _cut(left[2 * some :], right))) if 2 * some < tokens else blocks


def _pays(tokens: int, some: int, half: int, part: int) -> bool:
    """Whether the engine takes one more step of Strassen's algorithm."""
    tile = _TOKENS * part + half // _PACK * _TOKENS * _PACK + half * (part // _OUTPUTS) * _OUTPUTS
    extra = 4 * some * half + 4 * half * part + 7 * some * part
    return tokens // _TOKENS * tile - extra * _PENALTY > 0


def _cut(left: Tensor, right: Tensor, tile: int = _TOKENS) -> Tensor:
    """The product without blocks; sums of more terms than a tile holds are added up from pieces."""
    terms = left.shape[1]
    most = _CACHE // (min(tile, len(left)) + _OUTPUTS)
    if terms <= most:
        return _one_by_one(left, right)
    most = most // _PACK * _PACK
    total = _one_by_one(left[:, :most], right[:most])
    for start in range(most, terms, most):
        total = total + _one_by_one(left[:, start : start + most], right[start : start + most])
    return total


def _one_by_one(left: Tensor, right: Tensor) -> Tensor:
    columns = left.T.contiguous()
    found = torch.empty(len(left), right.shape[1], dtype=torch.float16, device=left.device)
    step = max(1, _ACCUMULATED // max(1, len(left)))
    for start in range(0, right.shape[1], step):
        part = right[:, start : start + step]
        total = torch.zeros(len(left), part.shape[1], dtype=torch.float16, device=left.device)
        for term, factor in zip(columns, part, strict=True):
            total.addcmul_(term.unsqueeze(1), factor.unsqueeze(0))
        found[:, start : start + step] = total
    return found
