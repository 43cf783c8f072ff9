"""Quantization formats: how one weight tensor is stored in an MNN file, to the byte.

Source of the layout: MNN's exporter (`transformers/llm/export`), measured on engine 3.6.1.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from qplan.errors import InputError

INT_BITS = (2, 3, 4, 5, 6, 8)
"""Integer widths that the engine computes exactly (1 symmetric is NaN, 7 cannot be packed)."""

WIDTHS = (*INT_BITS, 16)
"""Widths that a whole model can have: the integers, and halves."""

TIED_BITS = (4, 8, 16)
"""Widths at which the engine decodes a tied embedding; 1-3 bits are silently garbage, 5 and 6 have no decoder."""

SMALLEST_BLOCK = 4
"""Fewest weights that may share a scale: the smallest block that was measured on the engine."""

LARGEST_PLAUSIBLE = 1e6
"""Scales, zero points, biases and norm weights reach no further, unless bits flipped."""

ACTIVATION_LANES = 16
"""Features that a kernel packs together. Under ``dynamic_option: 2`` blocks that are not a multiple of it silently give
garbage. Measured on MNN's wheel (AVX2, 8 features): 8, 16, 24 are right, 4 and 12 are not; AVX512 builds pack 16,
according to their source."""


_NAME = re.compile(
    r"(?:fp(?P<fp>16|32)|int(?P<bits>[1-9][0-9]{0,8})(?:-b(?P<block>0|[1-9][0-9]{0,8}))?(?P<sym>-sym)?(?:-s(?P<scale>16|32))?)"
)


@dataclass(frozen=True, order=True)
class QuantFormat:
    """One way to store a weight matrix ``[out_features, in_features]``."""

    bits: int
    """Bits per weight: one of `INT_BITS`, 16 (halves) or 32 (floats, the reference)."""
    block: int = 64
    """Input features that share a scale; 0 is the whole row. Always 0 for floats."""
    symmetric: bool = False
    """Without zero points. Always False for floats."""
    scale_bits: int = 16
    """Bits per scale and zero point, 16 or 32. Always 16 for floats."""

    def __post_init__(self) -> None:
        """Reject what no MNN file can hold.

        Raises:
            InputError: a width, block or scale width that does not exist.
        """
        if self.bits not in (*WIDTHS, 32):
            msg = f"width of {self.bits} bits does not exist in MNN; use one of {WIDTHS}"
            raise InputError(msg)
        if self.is_float and (self.block, self.symmetric, self.scale_bits) != (0, False, 16):
            msg = f"fp{self.bits} has neither blocks nor scales: write 'fp{self.bits}'"
            raise InputError(msg)
        if self.block != 0 and (self.block < SMALLEST_BLOCK or self.block % 4):
            msg = f"block of {self.block} weights: must be 0 (whole row) or a multiple of 4; 32, 64 and 128 are usual"
            raise InputError(msg)
        if self.scale_bits not in (16, 32):
            msg = f"scales of {self.scale_bits} bits: must be 16 or 32"
            raise InputError(msg)

    @classmethod
    def parse(cls, name: str) -> QuantFormat:
        """Read a format's name: ``fp16``, ``int4``, ``int4-b32``, ``int8-b0-sym``, ``int4-s32``.

        Raises:
            InputError: the name follows no such pattern or names an impossible format.
        """
        return _parsed(name)

    @property
    def name(self) -> str:
        """The shortest name that `parse` reads back; block 64, asymmetric and 16-bit scales are left out."""
        if self.is_float:
            return f"fp{self.bits}"
        block = "" if self.block == 64 else f"-b{self.block}"
        return f"int{self.bits}{block}{'-sym' if self.symmetric else ''}{'-s32' if self.scale_bits == 32 else ''}"

    def __str__(self) -> str:
        """Return the name."""
        return self.name

    @property
    def is_float(self) -> bool:
        """Whether weights are stored as floats, and activations stay floats under memory low."""
        return self.bits >= 16

    @property
    def levels(self) -> Sequence[int]:
        """Signed integers that the codes 0, 1, ... stand for: the value table of the record; none for floats."""
        half = 0 if self.is_float else 1 << (self.bits - 1)
        return range(-half, half)

    @property
    def used_levels(self) -> Sequence[int]:
        """Levels that weights are rounded to: symmetric formats leave out the one that has no opposite."""
        return self.levels[1:] if self.symmetric else self.levels

    @property
    def can_be_looked_up(self) -> bool:
        """Whether the engine decodes a tied embedding in this format."""
        return self.bits in TIED_BITS

    @property
    def allows_block_activations(self) -> bool:
        """Whether the engine is right under ``dynamic_option: 2``, where every block of activations has a scale."""
        return self.block % ACTIVATION_LANES == 0

    def block_size(self, in_features: int) -> int:
        """Weights per scale for a row of ``in_features``."""
        return self.block or in_features

    def divides(self, in_features: int) -> bool:
        """Whether a row of ``in_features`` is a whole number of blocks."""
        return self.is_float or in_features % self.block_size(in_features) == 0

    def resolve(self, in_features: int) -> QuantFormat:
        """The same format with a block that divides the row: itself, else one scale per row.

        MNN's exporter silently halves the block until it divides, which costs up to 8 bits per weight
        and is garbage on a tied head. qplan takes block 0 and callers report the change.
        """
        return self if self.divides(in_features) else replace(self, block=0)

    def halved(self, in_features: int) -> QuantFormat:
        """The format that MNN's exporter turns this one into: it silently halves the block until it divides the row."""
        block = self.block
        while block and in_features % block:
            block //= 2
        return self if self.is_float else replace(self, block=block if block >= SMALLEST_BLOCK else 0)

    def alpha_bytes(self, out_features: int, in_features: int) -> int:
        """Bytes of scales (and zero points) of a matrix."""
        if self.is_float:
            return 0
        blocks = out_features * (in_features // self.block_size(in_features))
        return blocks * (1 if self.symmetric else 2) * self.scale_bits // 8

    def code_bytes(self, out_features: int, in_features: int) -> int:
        """Bytes of the weights themselves, without header and scales."""
        if self.bits == 32:
            return out_features * in_features * 4
        if self.bits == 16:
            return out_features * in_features * 2
        return (out_features * in_features * self.bits + 7) // 8  # one bit stream over the whole matrix

    def header_bytes(self, out_features: int, in_features: int) -> int:
        """Bytes of the record's header: dims count, two dims, value table."""
        if self.is_float:
            return 0
        dim_bytes = 4 if max(out_features, in_features) > 65535 else 2
        return 1 + 2 * dim_bytes + 1 + len(self.levels)

    def record_bytes(self, out_features: int, in_features: int, *, bias: bool) -> int:
        """Bytes that one matrix takes in ``llm.mnn.weight``: header, codes, scales, fp32 bias."""
        return (
            self.header_bytes(out_features, in_features)
            + self.code_bytes(out_features, in_features)
            + self.alpha_bytes(out_features, in_features)
            + (4 * out_features if bias else 0)
        )

    def effective_bits(self, out_features: int, in_features: int) -> float:
        """Bits per weight with scales and header, without the bias."""
        return 8 * self.record_bytes(out_features, in_features, bias=False) / (out_features * in_features)


FP32 = QuantFormat(32, 0)
FP16 = QuantFormat(16, 0)
INT8 = QuantFormat(8)
INT4 = QuantFormat(4)

Formats = Mapping[str, QuantFormat]
"""A format by tensor name: of a whole plan, or of some of its tensors."""

DEFAULT_FORMATS = (FP16, *(QuantFormat(bits, block) for bits in (8, 6, 5, 4, 3, 2) for block in (0, 64)))
"""Formats that are measured by default. Without the widths between 4 and 16, plans lose 1.2 to 1.8 times more, without
whole rows up to 1.5 times; adding blocks of 32 and 128 gains 1 to 2 %, see ``reports/planner/formats.md``."""


@lru_cache(maxsize=1024)
def _parsed(name: str) -> QuantFormat:
    """The format of a name. Cached: tables name few formats, and many times."""
    match = _NAME.fullmatch(name.strip().lower())
    if match is None:
        msg = f"format {name!r} is not understood; write fp16 or int<bits>[-b<block>][-sym][-s32], e.g. int4-b32"
        raise InputError(msg)
    if match["fp"]:
        return QuantFormat(int(match["fp"]), 0)
    block = 64 if match["block"] is None else int(match["block"])
    return QuantFormat(int(match["bits"]), block, match["sym"] is not None, int(match["scale"] or 16))


def parse_formats(text: str) -> tuple[QuantFormat, ...]:
    """Read a comma-separated list of formats, widest first, without repeats.

    Raises:
        InputError: nothing between two commas, an unknown format, or the reference fp32 among them.
    """
    names = text.split(",")
    if not all(name.strip() for name in names):
        what = "leaves a format out" if text.strip(", ") else "names no format"
        msg = f"--formats {text!r} {what}; write for example --formats fp16,int8,int4"
        raise InputError(msg)
    formats = {QuantFormat.parse(name) for name in names}
    if FP32 in formats:
        msg = "fp32 is the reference of every measurement; leave it out of --formats"
        raise InputError(msg)
    return tuple(sorted(formats, key=lambda f: (-f.bits, f.block, f.symmetric, f.scale_bits)))


def applies(memory: str, formats: Mapping[str, QuantFormat]) -> bool:
    """Whether ``dynamic_option`` changes anything: it does under memory low, for integer weights."""
    return memory == "low" and not all(fmt.is_float for fmt in formats.values())


def has_options(formats: Mapping[str, QuantFormat]) -> bool:
    """Whether a model computes something else under each ``dynamic_option``, and is right under both."""
    return applies("low", formats) and not garbled(formats)


def garbled(formats: Mapping[str, QuantFormat]) -> list[str]:
    """Tensors that the engine garbles under ``dynamic_option`` 2."""
    return [name for name, fmt in formats.items() if not fmt.allows_block_activations]
