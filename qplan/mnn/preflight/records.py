"""What the graph declares of every matrix, against the record in the weight file."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from qplan.formats import INT_BITS
from qplan.mnn.engines import HALF_SCALES
from qplan.mnn.graph.binary import Convolution
from qplan.mnn.preflight.finding import COPY_AGAIN, EXPORT_AGAIN, GARBAGE, Finding, error, warning
from qplan.mnn.preflight.model import ModelFolder

_FLOATS, _INTEGERS, _HALVES = 0, 1, 3


@dataclass(frozen=True)
class Header:
    """The first bytes of a record of integers: sizes, then the values that codes stand for."""

    dims: tuple[int, ...]
    values: int
    """Entries of the value table."""
    length: int
    """Bytes of the header."""

    @property
    def bits(self) -> int:
        """Bits per code."""
        return max(1, (self.values - 1).bit_length())


def read_header(stream: BinaryIO, offset: int, *, wide: bool) -> Header | None:
    """Header of the record at ``offset``; None if the file ends there."""
    stream.seek(offset)
    start = stream.read(18)
    count, size = (start[0] if start else 0), (4 if wide else 2)
    end = 1 + count * size
    if not 1 <= count <= 4 or len(start) <= end:
        return Header((), 0, 0) if start else None
    dims = tuple(int.from_bytes(start[1 + size * k : 1 + size * (k + 1)], "little") for k in range(count))
    values = start[end] or 256
    return Header(dims, values, end + 1 + values)


def check_records(model: ModelFolder) -> Iterator[Finding]:
    """Widths, blocks and lengths of every matrix; the headers in the weight file."""
    if model.graph is None or not model.weight_path.is_file():
        return
    odd: list[tuple[str, Header | None, Convolution]] = []
    half_scales = 0
    with model.weight_path.open("rb") as stream:
        for name, convolution in model.linears():
            if min(convolution.external) < 0 or sum(convolution.external) > model.weight_bytes:
                continue  # told by the checks of ranges
            half_scales += convolution.coding == _INTEGERS and convolution.scale_bits == 16
            if convolution.coding != _INTEGERS:
                yield from _floats(name, convolution)
                continue
            header = read_header(stream, convolution.external[0], wide=convolution.wide_shape)
            if header is None or not _belongs(header, convolution):
                odd.append((name, header, convolution))
                continue
            yield from _integers(name, convolution, header.bits)
    if odd:
        name, header, convolution = odd[0]
        there = f"{header.dims} at {header.bits} bits" if header is not None and header.dims else "no record"
        what = f"{name} is ({convolution.out_features}, {convolution.in_features}) at {convolution.bits} bits, at byte "
        what += f"{convolution.external[0]:,} lies {there}; {len(odd)} ops differ: another model's weights, or damaged"
        yield error("weights-foreign", model.weight_path.name, what, "a crash or " + GARBAGE, COPY_AGAIN)
    if half_scales and model.engine < HALF_SCALES:
        what = f"{half_scales} ops have 16-bit scales; engine {model.engine} reads 32"
        remedy = f"qplan emit --engine {model.engine}, or llmexport with --scale_bit 32"
        yield error("half-scales", "llm.mnn", what, GARBAGE, remedy)


def _belongs(header: Header, convolution: Convolution) -> bool:
    product = 1
    for size in header.dims:
        product *= size
    return header.dims[:1] == (convolution.out_features,) and product == convolution.weights


def _floats(name: str, convolution: Convolution) -> Iterator[Finding]:
    width = {_HALVES: 2, _FLOATS: 4}.get(convolution.coding)
    if width is not None and convolution.external[1] != width * convolution.weights:
        what = f"{convolution.external[1]:,} bytes for {convolution.weights:,} weights of {width} bytes"
        yield error("record-length", f"llm.mnn, {name}", what, "a crash or " + GARBAGE, EXPORT_AGAIN)


def _integers(name: str, convolution: Convolution, bits: int) -> Iterator[Finding]:
    """What contradicts itself, or has no meaning on the engine; ``bits`` are those of the record itself."""
    where = f"llm.mnn, {name}"
    if bits == 1 and convolution.symmetric:
        remedy = "use asymmetric 1 bit, or 2 bits and more"
        yield error("one-bit-symmetric", where, "1 bit without zero points", "NaN without a message", remedy)
        return
    if bits not in (1, *INT_BITS):
        what = f"{bits} bits; the engine reads 1 to 6 and 8"
        yield error("width", where, what, "a crash or " + GARBAGE, "use 2 to 6, 8 or 16 bits")
        return
    if bits != convolution.bits:
        what = f"{convolution.bits} bits are declared, the record has {bits}"
        effect = "the CPU back end believes the record and is right; others may not"
        yield warning("bits-declared", where, what, effect, EXPORT_AGAIN)
    yield from _blocks(where, convolution, bits)


def _blocks(where: str, convolution: Convolution, bits: int) -> Iterator[Finding]:
    """Scales against the matrix: a whole number of blocks in a row, and as many zero points as said."""
    _, weight_len, alpha_len = (*convolution.external, 0, 0)[:3]
    scales = alpha_len * 8 // convolution.scale_bits
    rows, width = convolution.out_features, convolution.in_features * convolution.kernel
    if not convolution.symmetric:
        if scales == convolution.zero_points or scales % (2 * rows):
            what = f"{convolution.zero_points:,} zero points are declared, {scales:,} scales and zero points stored; "
            what += "symmetric weights declared as asymmetric look like this (llmexport 0.0.5 with --quant_config)"
            yield error("scales", where, what, GARBAGE, "use one symmetry for all, or build with qplan")
            return
        if scales != 2 * convolution.zero_points:
            what = f"{convolution.zero_points:,} zero points are declared, {scales // 2:,} stored"
            effect = "the CPU back end counts those stored and is right; others may not"
            yield warning("scales", where, what, effect, EXPORT_AGAIN)
        scales //= 2
    if scales == 0 or scales % rows:
        what = f"{scales:,} scales for {rows:,} rows"
        yield error("scales", where, what, "a crash or " + GARBAGE, EXPORT_AGAIN)
        return
    if width % (scales // rows):
        what = f"{scales // rows} blocks do not divide a row of {width} weights"
        yield error("block", where, what, "NaN or " + GARBAGE, "use a block that divides, or 0 for whole rows")
        return
    shape_bytes = 4 if convolution.wide_shape else 2
    header = 2 + (1 << bits)
    codes = (convolution.weights * bits + 7) // 8
    lengths = {header + codes + shape_bytes * dims for dims in (2, 4)}
    if weight_len not in lengths:
        what = f"{weight_len:,} bytes for {convolution.weights:,} weights at {bits} bits, "
        what += f"expected {min(lengths):,}"
        yield error("record-length", where, what, "a crash or " + GARBAGE, EXPORT_AGAIN)
