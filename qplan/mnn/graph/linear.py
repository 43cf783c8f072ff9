"""A linear of a graph: what it declares, where its bytes lie, and what a format means to both."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from qplan.errors import InputError
from qplan.formats import FP16, FP32, QuantFormat

FLOATS, INTEGERS, HALVES = 0, 1, 3
"""Codings: what a record of the weight file holds. llmexport makes no others."""

EXPERT_PREFIX = "/expert/"
"""Prefix of the names of single experts' graphs, and of the ops in them."""


@dataclass(frozen=True)
class Record:
    """Where a linear's bytes lie in the weight file: weights, then scales, then bias."""

    offset: int
    weight: int
    """Bytes of the header and the packed weights."""
    alpha: int
    """Bytes of the scales and zero points."""
    bias: int
    """Bytes of the fp32 bias."""

    @property
    def total(self) -> int:
        """Bytes of all parts."""
        return self.weight + self.alpha + self.bias


@dataclass(frozen=True, kw_only=True)
class Linear:
    """A matrix product as the graph declares it, unchecked; MNN calls it a convolution."""

    name: str
    """Name of its op; with a number in brackets if the op holds several linears."""
    out_features: int
    in_features: int
    kernel: int = 1
    """Kernel height times width."""
    group: int = 1
    coding: int
    """One of `FLOATS`, `INTEGERS` and `HALVES`."""
    bits: int
    """32 for floats, 16 for halves, else as declared."""
    zero_points: int = 0
    """Zero points of the whole matrix; 0 is symmetric."""
    wide_shape: bool = False
    """Whether the record holds its two sizes in 32 bits."""
    scale_bits: int = 32
    external: tuple[int, ...]
    """Offset in the weight file, then lengths."""

    @property
    def is_plain(self) -> bool:
        """Whether it is a product with one matrix, and has one."""
        return (self.kernel, self.group) == (1, 1) and bool(self.external)

    @property
    def symmetric(self) -> bool:
        """Whether the engine takes it for symmetric: it looks at the zero points alone."""
        return self.zero_points == 0

    @property
    def weights(self) -> int:
        """Number of weights."""
        return self.out_features * (self.in_features // max(1, self.group)) * self.kernel

    @property
    def record(self) -> Record:
        """Where its bytes lie; parts that are not declared have 0 bytes."""
        offset, weight, second, third = (*self.external, 0, 0, 0, 0)[:4]
        return Record(offset, weight, 0, second) if self.coding == FLOATS else Record(offset, weight, second, third)

    @property
    def bias(self) -> bool:
        """Whether it has a bias."""
        return self.record.bias > 0

    @property
    def blocks(self) -> int:
        """Scales per row, as declared; 0 for floats and halves."""
        if self.coding != INTEGERS:
            return 0
        scales = self.record.alpha * 8 // self.scale_bits if self.symmetric else self.zero_points
        return scales // max(1, self.out_features)

    @property
    def format(self) -> QuantFormat:
        """The format that it declares. Whole rows have block 0: the graph does not tell them from one block per row.

        Raises:
            InputError: a coding or a width that qplan does not know, e.g. 1 bit.
        """
        if self.coding in {FLOATS, HALVES}:
            return FP32 if self.coding == FLOATS else FP16
        if self.coding != INTEGERS:
            msg = f"{self.name} is stored in coding {self.coding}, which qplan does not know; export it with llmexport"
            raise InputError(msg)
        block = self.in_features // self.blocks if self.blocks > 1 else 0
        return QuantFormat(self.bits, block, self.symmetric, self.scale_bits)

    def holds(self, fmt: QuantFormat) -> bool:
        """Whether it declares exactly ``fmt``: the same numbers, and ranges of the same lengths."""
        shape = self.out_features, self.in_features
        declared: tuple[object, ...] = (self.coding, self.bits, self.blocks)
        if fmt.is_float:
            expected: tuple[object, ...] = (_coding(fmt), fmt.bits, 0)
        else:
            declared += (self.symmetric, self.scale_bits)
            blocks = self.in_features // fmt.block_size(self.in_features)
            expected = (_coding(fmt), fmt.bits, blocks, fmt.symmetric, fmt.scale_bits)
        lengths = fmt.header_bytes(*shape) + fmt.code_bytes(*shape), fmt.alpha_bytes(*shape)
        return declared == expected and (self.record.weight, self.record.alpha) == lengths


def declaration(fmt: QuantFormat, out_features: int, in_features: int, record: Record) -> dict[str, Any]:
    """What the JSON form of a graph declares of a linear in a format; keys whose value is None must be left out."""
    if fmt == FP32:
        # without quantization parameters a convolution holds floats: weights, then bias
        return {"quanParameter": None, "external": [record.offset, record.weight, record.bias]}
    external = [record.offset, record.weight, record.alpha, record.bias, 0]
    if fmt == FP16:
        return {"quanParameter": {"type": HALVES}, "external": external}
    parameters = {
        "type": INTEGERS,
        "aMaxOrBits": fmt.bits,
        "aMin": 0 if fmt.symmetric else 1,
        "readType": 0 if fmt.symmetric else out_features * (in_features // fmt.block_size(in_features)),
        "scaleStorage": f"FP{fmt.scale_bits}",
        "shapeInt32": max(out_features, in_features) > 65535,
        "quantScale": 1.0,
        "scaleIn": 0.0,
        "scaleOut": 0.0,
        "useInt32": False,
        "has_scaleInt": False,
        "weightSize": 0,
    }
    return {"quanParameter": parameters, "external": external}


def declaration_bytes(fmt: QuantFormat, name: str) -> int:
    """Bytes of a linear's parameters in the graph file, relative to fp16; measured on graphs of 57 linears.

    An expert's take 2 more, by the alignment of its own graph: measured on graphs of 8, 16 and 64 such linears.
    """
    return {FP16: 0, FP32: -28}.get(fmt, 38 if name.startswith(EXPERT_PREFIX) else 36)


def _coding(fmt: QuantFormat) -> int:
    return {FP32: FLOATS, FP16: HALVES}.get(fmt, INTEGERS)
