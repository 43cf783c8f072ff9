"""The weight file of a build, written one record at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from qplan.errors import InputError, ToolError
from qplan.formats import FP16, QuantFormat
from qplan.mnn.build.skeleton import FixedRange, Skeleton
from qplan.mnn.build.tie import Tie, check_tied
from qplan.mnn.graph.json_graph import WEIGHT_FILE, GraphOp, Record
from qplan.quantize import FloatTensor, StoredTensor, store_float

TensorSource = StoredTensor | Callable[[], StoredTensor]
"""A tensor, or what makes it: called once, in file order, so that one tensor at a time is in memory."""


@dataclass(frozen=True)
class WrittenWeights:
    """What lies where in a new weight file."""

    formats: dict[str, QuantFormat]
    """Format by op name."""
    records: dict[str, Record]
    """Place by op name."""
    moved: dict[int, int]
    """New offset by old offset, for all that is not a linear."""
    tie: Tie | None
    """Where the input embedding is looked up, if tied."""


def write_weights(skeleton: Skeleton, tensors: Mapping[str, TensorSource], path: Path) -> WrittenWeights:
    """Write every record in the skeleton's order, which is llmexport's.

    Raises:
        InputError: a tensor has another shape than its op, or a width that a tied head cannot have.
    """
    written = WrittenWeights({}, {}, {}, None)
    pieces: list[GraphOp | FixedRange] = [*skeleton.ops, *skeleton.fixed]
    tie: Tie | None = None
    with (skeleton.folder / WEIGHT_FILE).open("rb") as source, path.open("wb") as target:
        for piece in sorted(pieces, key=_offset):
            start = target.tell()
            if isinstance(piece, FixedRange):
                target.write(_bytes_at(source, piece.offset, piece.length))
                written.moved[piece.offset] = start
                continue
            given = tensors[piece.name]
            tensor = given() if callable(given) else given
            _check_shape(piece, tensor)
            old = piece.record
            bias = _bytes_at(source, old.offset + old.weight + old.alpha, old.bias)
            if tensor.format.bits == 32 and not bias:
                bias = bytes(4 * piece.out_features)  # the engine cannot run floats without a bias
            lengths = [target.write(part) for part in (tensor.weight_bytes(), tensor.alpha_bytes(), bias)]
            written.records[piece.name] = Record(start, *lengths)
            written.formats[piece.name] = tensor.format
            if piece.name == skeleton.tied_op:
                check_tied(piece.name, tensor.format)
                tie = _tie(piece, tensor, written.records[piece.name])
                lookup = store_float(tensor.dequantize(), FP16) if tensor.format.bits == 32 else None
        if tie is not None and lookup is not None:
            # the engine looks tokens up in halves at best: a head of floats gets them beside it
            tie = Tie(target.tell(), target.tell(), 0, FP16)
            target.write(lookup.weight_bytes())
    return WrittenWeights(written.formats, written.records, written.moved, tie)


def _offset(piece: GraphOp | FixedRange) -> int:
    return piece.offset if isinstance(piece, FixedRange) else piece.record.offset


def _bytes_at(source: BinaryIO, offset: int, length: int) -> bytes:
    source.seek(offset)
    found = source.read(length)
    if len(found) != length:
        msg = f"{source.name} ends before byte {offset + length}; export the model again"
        raise ToolError(msg)
    return found


def _check_shape(op: GraphOp, tensor: StoredTensor) -> None:
    stored = tensor.values if isinstance(tensor, FloatTensor) else tensor.codes
    if tuple(stored.shape) != (op.out_features, op.in_features):
        msg = f"{op.name} is {op.out_features} x {op.in_features}, its tensor {' x '.join(map(str, stored.shape))}"
        raise InputError(msg + "; was it made from another model?")


def _tie(op: GraphOp, tensor: StoredTensor, record: Record) -> Tie:
    header = tensor.format.header_bytes(op.out_features, op.in_features)
    return Tie(record.offset + header, record.offset + record.weight, record.alpha, tensor.format)
