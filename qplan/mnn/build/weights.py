"""The weight file of a build, written one record at a time."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from qplan.errors import InputError, ToolError
from qplan.formats import FP16, FP32, QuantFormat
from qplan.mnn.build.skeleton import FixedRange, Skeleton
from qplan.mnn.files import WEIGHT_FILE
from qplan.mnn.graph.linear import Linear, Record
from qplan.mnn.graph.tie import TieRecord
from qplan.rounding import StoredTensor, store_float

_ROWS = 4096
"""Rows of a lookup table to convert at a time."""

StoreOp = Callable[[str], StoredTensor | None]
"""Makes the tensor of an op: called once for each, in file order, so that one at a time is in memory. None leaves a
hole of halves in the file, for a graph that is run without that op."""


@dataclass(frozen=True)
class WrittenWeights:
    """What lies where in a new weight file."""

    formats: dict[str, QuantFormat]
    """Format by op name."""
    records: dict[str, Record]
    """Place by op name."""
    moved: dict[int, int]
    """New offset by old offset, for everything that is not a linear."""
    tie: TieRecord | None
    """Where the input embedding is looked up, if tied."""


def write_weights(skeleton: Skeleton, store: StoreOp, path: Path) -> WrittenWeights:
    """Write every record in the skeleton's order, which is llmexport's.

    Raises:
        InputError: a tensor and its op differ in shape.
    """
    written = WrittenWeights({}, {}, {}, None)
    pieces: list[Linear | FixedRange] = [*skeleton.ops, *skeleton.fixed]
    tie: TieRecord | None = None
    with (skeleton.folder / WEIGHT_FILE).open("rb") as source, path.open("wb") as target:
        for piece in sorted(pieces, key=_offset):
            start = target.tell()
            if isinstance(piece, FixedRange):
                target.write(_bytes_at(source, piece.offset, piece.length))
                written.moved[piece.offset] = start
                continue
            tensor = store(piece.name)
            old = piece.record
            bias = _bytes_at(source, old.offset + old.weight + old.alpha, old.bias)
            if tensor is None:
                hole = 2 * piece.out_features * piece.in_features
                target.seek(hole, os.SEEK_CUR)
                written.records[piece.name] = Record(start, hole, 0, target.write(bias))
                written.formats[piece.name] = FP16
                continue
            _check_shape(piece, tensor)
            if tensor.format == FP32 and not bias:
                bias = bytes(4 * piece.out_features)  # the engine cannot run floats without a bias
            weight = sum(map(target.write, tensor.weight_parts()))
            written.records[piece.name] = Record(start, weight, target.write(tensor.alpha_bytes()), target.write(bias))
            written.formats[piece.name] = tensor.format
            if piece.name == skeleton.tied_op:
                tie = _tie(piece, tensor, written.records[piece.name])
                lookup = tensor if tensor.format == FP32 else None
        target.truncate()  # to its length, if it ends with a hole
        if tie is not None and lookup is not None:
            # the engine looks tokens up in fp16 at best: a head in fp32 gets an fp16 copy beside it
            tie = TieRecord.of(FP16, target.tell(), target.tell(), 0)
            for start in range(0, lookup.shape[0], _ROWS):
                values = lookup.rows(slice(start, start + _ROWS)).dequantize()
                target.writelines(store_float(values, FP16).weight_parts())
    return WrittenWeights(written.formats, written.records, written.moved, tie)


def _offset(piece: Linear | FixedRange) -> int:
    return piece.offset if isinstance(piece, FixedRange) else piece.record.offset


def _bytes_at(source: BinaryIO, offset: int, length: int) -> bytes:
    source.seek(offset)
    found = source.read(length)
    if len(found) != length:
        msg = f"{source.name} ends before byte {offset + length}; export the model again"
        raise ToolError(msg)
    return found


def _check_shape(op: Linear, tensor: StoredTensor) -> None:
    if tensor.shape != (op.out_features, op.in_features):
        msg = f"{op.name} is {op.out_features} x {op.in_features}, its tensor {' x '.join(map(str, tensor.shape))}"
        raise InputError(msg + "; was it made from another model?")


def _tie(op: Linear, tensor: StoredTensor, record: Record) -> TieRecord:
    header = tensor.format.header_bytes(op.out_features, op.in_features)
    return TieRecord.of(tensor.format, record.offset + header, record.offset + record.weight, record.alpha)
