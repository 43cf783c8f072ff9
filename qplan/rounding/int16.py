"""Keeps sums of two products of int8 within int16, which MNN adds them up in on ARM without dot product.

There, products of inputs that lie 8 apart are added in int16 before anything else (``smull``, ``smlal2``). Of all pairs
of codes only (-128) x (-128) twice does not fit: 32,768 becomes -32,768, an error as large as the largest weight times
the largest activation of a block. With a scale for each block (``dynamic_option`` 2), activations of the code -128 are
common: one large value leaves it to all others. Found on SmolLM2-135M, whose uniform INT8 loses 0.66 nats there.
"""

from __future__ import annotations

from dataclasses import replace

from qplan.rounding.stored import IntTensor, StoredTensor

_BITS = 8
"""The only width whose codes reach -128."""


def within_int16(tensor: StoredTensor) -> StoredTensor:
    """A tensor whose blocks hold their lowest code once at most: others of it are raised by one.

    A step of 8 bits is a 255th of a block's range, and few blocks have two weights at their lower end.
    """
    if not isinstance(tensor, IntTensor) or tensor.format.bits != _BITS or tensor.format.symmetric:
        return tensor
    rows, blocks = tensor.scale.shape
    lowest = tensor.codes.view(rows, blocks, -1) == 0
    several = (lowest.sum(-1) > 1).nonzero(as_tuple=True)
    if not len(several[0]):
        return tensor
    codes = tensor.codes.clone().view(rows, blocks, -1)
    found = codes[several]
    again = (found == 0) & ((found == 0).cumsum(-1) > 1)
    codes[several] = found + again
    return replace(tensor, codes=codes.view_as(tensor.codes))
