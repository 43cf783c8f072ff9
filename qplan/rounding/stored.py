"""A weight matrix exactly as an MNN file stores it, and the values that the engine reads back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from qplan.formats import FP16, FP32, QuantFormat
from qplan.rounding.codes import levels_of
from qplan.rounding.packing import pack_codes, value_header


@dataclass(frozen=True)
class IntTensor:
    """Integers, scales and zero points of a matrix ``[out_features, in_features]``."""

    format: QuantFormat
    codes: Tensor
    """uint8 ``[out, in]``: index of each weight's level in the format."""
    scale: Tensor
    """float32 ``[out, blocks]``, already rounded to the format's scale width."""
    zero: Tensor | None
    """float32 ``[out, blocks]``, the value of signed integer 0; None if symmetric."""

    @property
    def shape(self) -> tuple[int, int]:
        """Output and input features."""
        out_features, in_features = self.codes.shape
        return out_features, in_features

    def dequantize(self) -> Tensor:
        """float32 ``[out, in]``: ``q * scale + zero``, what the engine computes with."""
        out_features, in_features = self.codes.shape
        blocks = levels_of(self.codes, self.format).view(out_features, self.scale.shape[1], -1)
        blocks.mul_(self.scale.unsqueeze(-1))  # in place: a large matrix takes no more than itself
        if self.zero is not None:
            blocks.add_(self.zero.unsqueeze(-1))
        return blocks.view(out_features, in_features)

    def rows(self, rows: slice | Tensor) -> IntTensor:
        """Some output features (views, if they are a slice)."""
        zero = None if self.zero is None else self.zero[rows]
        return IntTensor(self.format, self.codes[rows], self.scale[rows], zero)

    def weight_bytes(self) -> bytes:
        """Header and packed integers."""
        return b"".join(self.weight_parts())

    def weight_parts(self) -> Iterator[bytes]:
        """The same, some rows at a time: a large matrix is never packed twice."""
        yield value_header(*self.shape, self.format.levels)
        yield from self.code_parts()

    def code_parts(self) -> Iterator[bytes]:
        """Packed integers alone, some rows at a time."""
        for codes in self.codes.split(packed_rows(self.shape[1])):
            yield pack_codes(codes.cpu().numpy(), self.format.bits)

    def alpha_bytes(self) -> bytes:
        """Scales, or (zero, scale) pairs, row by row and block by block."""
        alpha = self.scale if self.zero is None else torch.stack([self.zero, self.scale], dim=-1)
        width = torch.float16 if self.format.scale_bits == 16 else torch.float32
        return alpha.to(width).cpu().contiguous().numpy().tobytes()


@dataclass(frozen=True)
class FloatTensor:
    """A matrix stored as halves (fp16) or floats (fp32): no header, no scales."""

    format: QuantFormat
    values: Tensor
    """float16 or float32 ``[out, in]``; bfloat16 of an untied embedding at 16 bits."""

    @property
    def shape(self) -> tuple[int, int]:
        """Output and input features."""
        out_features, in_features = self.values.shape
        return out_features, in_features

    def dequantize(self) -> Tensor:
        """float32 ``[out, in]``."""
        return self.values.to(torch.float32)

    def rows(self, rows: slice | Tensor) -> FloatTensor:
        """Some output features (a view, if they are a slice)."""
        return FloatTensor(self.format, self.values[rows])

    def weight_bytes(self) -> bytes:
        """The raw values."""
        return b"".join(self.weight_parts())

    def weight_parts(self) -> Iterator[bytes]:
        """The same, some rows at a time."""
        for values in self.values.split(packed_rows(self.shape[1])):
            yield values.cpu().contiguous().numpy().tobytes()

    def alpha_bytes(self) -> bytes:
        """Nothing: floats have no scales."""
        return b""


StoredTensor = IntTensor | FloatTensor

_PACKED_ELEMENTS = 1 << 23
"""Weights that are made bytes of at a time."""


def packed_rows(in_features: int) -> int:
    """Rows to pack at a time: a multiple of 8, so that they end on a whole byte in any width."""
    return max(8, _PACKED_ELEMENTS // in_features // 8 * 8)


CACHED_ELEMENTS = 1 << 17
"""Weights that searches work on at a time: as many as a processor's cache holds, with their errors."""


LARGE_ELEMENTS = 1 << 25
"""Weights from which on a matrix is worked on some rows at a time: 128 MiB of float32."""

ROWS_TOGETHER = 1024
"""Rows that error feedback works on at a time."""


def row_pieces(out_features: int, in_features: int) -> list[slice]:
    """Rows ``[out_features, in_features]`` to work on at a time: all of them, unless the matrix is large.

    Pieces depend on the shape alone, and hold a multiple of the rows that roundings work on at a time: the integers
    are the same whoever rounds them.
    """
    if out_features * in_features <= LARGE_ELEMENTS:
        return [slice(0, out_features)]
    step = max(1, LARGE_ELEMENTS // in_features // ROWS_TOGETHER) * ROWS_TOGETHER
    return [slice(start, min(start + step, out_features)) for start in range(0, out_features, step)]


def joined(parts: Sequence[StoredTensor]) -> StoredTensor:
    """Rows in one format, one part under the other."""
    if len(parts) == 1:
        return parts[0]
    floats = [part.values for part in parts if isinstance(part, FloatTensor)]
    if floats:
        return FloatTensor(parts[0].format, torch.cat(floats))
    return stacked([part for part in parts if isinstance(part, IntTensor)])


def by_rows(weight: Tensor, store: Callable[[Tensor], IntTensor], elements: int = CACHED_ELEMENTS) -> IntTensor:
    """Store ``weight [out, in]`` a few rows at a time, about ``elements`` weights; no row may depend on others.

    Many passes over a few rows are faster than over all of them, and need little memory.
    """
    rows = max(1, elements // weight.shape[1])
    return stacked([store(chunk.to(torch.float32)) for chunk in weight.split(rows)])


def stacked(parts: Sequence[IntTensor]) -> IntTensor:
    """Rows in one format, one part under the other."""
    zeros = [part.zero for part in parts if part.zero is not None]
    return IntTensor(
        parts[0].format,
        torch.cat([part.codes for part in parts]),
        torch.cat([part.scale for part in parts]),
        torch.cat(zeros) if zeros else None,
    )


def store_float(weight: Tensor, fmt: QuantFormat) -> FloatTensor:
    """Store a matrix as halves or floats; halves are clamped to the largest finite half."""
    if fmt == FP32:
        return FloatTensor(FP32, weight.to(torch.float32))
    limit = torch.finfo(torch.float16).max
    return FloatTensor(FP16, weight.to(torch.float32).clamp(-limit, limit).to(torch.float16))
