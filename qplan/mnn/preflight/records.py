"""What the graph declares of every matrix, against the record in the weight file."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from qplan.formats import INT_BITS, WIDTHS
from qplan.mnn.engines import HALF_SCALES
from qplan.mnn.files import GRAPH_FILE
from qplan.mnn.graph.linear import FLOATS, HALVES, INTEGERS, Linear
from qplan.mnn.preflight.finding import COPY_AGAIN, EXPORT_AGAIN, GARBAGE, Finding, error, warning
from qplan.mnn.preflight.model import ModelFolder


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
    odd: list[tuple[Linear, Header | None]] = []
    half_scales = 0
    with model.weight_path.open("rb") as stream:
        for linear in model.linears():
            if min(linear.external) < 0 or sum(linear.external) > model.weight_bytes:
                continue  # reported by check_ranges
            half_scales += linear.coding == INTEGERS and linear.scale_bits == 16
            if linear.coding != INTEGERS:
                yield from _floats(linear)
                continue
            header = read_header(stream, linear.external[0], wide=linear.wide_shape)
            if header is None or not _belongs(header, linear):
                odd.append((linear, header))
                continue
            yield from _integers(linear, header)
    if odd:
        linear, header = odd[0]
        there = f"{header.dims} at {header.bits} bits" if header is not None and header.dims else "no record"
        what = f"{linear.name} is ({linear.out_features}, {linear.in_features}) at {linear.bits} bits, at byte "
        what += f"{linear.external[0]:,} lies {there}; {len(odd)} ops differ: another model's weights, or damaged"
        yield error("weights-foreign", model.weight_path.name, what, "a crash or " + GARBAGE, COPY_AGAIN)
    if half_scales and model.engine < HALF_SCALES:
        what = f"{half_scales} ops have 16-bit scales; engine {model.engine} reads 32"
        remedy = f"qplan emit --engine {model.engine}, or llmexport with --scale_bit 32"
        yield error("half-scales", GRAPH_FILE, what, GARBAGE, remedy)


def _belongs(header: Header, linear: Linear) -> bool:
    product = 1
    for size in header.dims:
        product *= size
    return header.dims[:1] == (linear.out_features,) and product == linear.weights


def _floats(linear: Linear) -> Iterator[Finding]:
    width = linear.bits // 8
    if linear.coding in {FLOATS, HALVES} and linear.record.weight != width * linear.weights:
        what = f"{linear.record.weight:,} bytes for {linear.weights:,} weights of {width} bytes"
        yield error("record-length", f"{GRAPH_FILE}, {linear.name}", what, "a crash or " + GARBAGE, EXPORT_AGAIN)


def _integers(linear: Linear, header: Header) -> Iterator[Finding]:
    """Contradictions, and what the engine cannot read; it believes the record, not the graph."""
    bits = header.bits
    where = f"{GRAPH_FILE}, {linear.name}"
    if bits == 1 and linear.symmetric:
        remedy = "use asymmetric 1 bit, or 2 bits and more"
        yield error("one-bit-symmetric", where, "1 bit without zero points", "NaN without a message", remedy)
        return
    if bits not in (1, *INT_BITS):
        what = f"{bits} bits; the engine reads {', '.join(map(str, (1, *INT_BITS)))}"
        remedy = f"use one of {', '.join(map(str, WIDTHS))} bits"
        yield error("width", where, what, "a crash or " + GARBAGE, remedy)
        return
    if bits != linear.bits:
        what = f"{linear.bits} bits are declared, the record has {bits}"
        effect = "the CPU back end believes the record and is right; others may not"
        yield warning("bits-declared", where, what, effect, EXPORT_AGAIN)
    yield from _blocks(where, linear, header)


def _blocks(where: str, linear: Linear, header: Header) -> Iterator[Finding]:
    """Scales against the matrix: a whole number of blocks in a row, and as many zero points as declared."""
    scales = linear.record.alpha * 8 // linear.scale_bits
    rows, width = linear.out_features, linear.in_features * linear.kernel
    if not linear.symmetric:
        if scales == linear.zero_points or scales % (2 * rows):
            what = f"{linear.zero_points:,} zero points are declared, {scales:,} scales and zero points stored; "
            what += "symmetric weights declared as asymmetric look like this (llmexport 0.0.5 with --quant_config)"
            yield error("scales", where, what, GARBAGE, "use one symmetry for all, or build with qplan")
            return
        if scales != 2 * linear.zero_points:
            what = f"{linear.zero_points:,} zero points are declared, {scales // 2:,} stored"
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
    expected = header.length + (linear.weights * header.bits + 7) // 8
    if linear.record.weight != expected:
        what = f"{linear.record.weight:,} bytes for {linear.weights:,} weights at {header.bits} bits, "
        what += f"expected {expected:,}"
        yield error("record-length", where, what, "a crash or " + GARBAGE, EXPORT_AGAIN)
