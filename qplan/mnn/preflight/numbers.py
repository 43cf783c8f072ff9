"""Looks in norms, biases and samples of the scales for numbers that no model has, e.g. from flipped bits.

Also in the scales of an embedding that has a file of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from qplan.formats import INT_BITS, LARGEST_PLAUSIBLE
from qplan.mnn.files import EMBEDDING_FILE, EMBEDDING_KEY, LLM_CONFIG_FILE
from qplan.mnn.graph.binary import LAYER_NORM
from qplan.mnn.graph.linear import FLOATS, HALVES, Linear
from qplan.mnn.graph.tie import TIE_KEY
from qplan.mnn.preflight.finding import COPY_AGAIN, EXPORT_AGAIN, GARBAGE, Finding, error
from qplan.mnn.preflight.model import ModelFolder

_WINDOW_BYTES = 4096


def check_numbers(model: ModelFolder, *, full: bool = False) -> Iterator[Finding]:
    """Look for NaN, infinities and absurd sizes.

    Args:
        model: the folder.
        full: read all scales, not windows at their start, middle and end.
    """
    yield from _embedding(model, full=full)
    if model.graph is None or not model.weight_path.is_file():
        return
    size = model.weight_bytes
    wrong: list[str] = []
    with model.weight_path.open("rb") as stream:
        for node in model.graph.all_nodes:
            if node.type == LAYER_NORM:
                for offset, *lengths in node.externals:
                    if not _sane(stream, offset, sum(lengths), 4, size, full=True):
                        wrong.append(node.name)
        wrong += [
            linear.name
            for linear in model.linears()
            if not all(_sane(stream, *part, size, full=full) for part in _parts(linear))
        ]
    if wrong:
        beyond = f"not finite or beyond {LARGEST_PLAUSIBLE:g}"
        what = f"{len(wrong)} ops have scales, biases or norms that are {beyond}: {wrong[0]}"
        yield error("bad-numbers", model.weight_path.name, what, f"NaN, or {GARBAGE}", COPY_AGAIN)


def _embedding(model: ModelFolder, *, full: bool) -> Iterator[Finding]:
    """The scales of a table of integers in a file of its own."""
    path, tie, hidden = model.path(EMBEDDING_KEY, EMBEDDING_FILE), model.tie, model.whole("hidden_size")
    if tie is None or tie.weight_offset or tie.bits not in INT_BITS or not path.is_file():
        return
    width = tie.scale_bits // 8
    with path.open("rb") as stream:
        windows = list(_windows(stream, tie.alpha_offset, tie.alpha_size, width, path.stat().st_size, full=full))
    if not all(map(_plausible, windows)):
        what = f"scales of the embedding are not finite or beyond {LARGEST_PLAUSIBLE:g}"
        yield error("bad-numbers", path.name, what, f"NaN, or {GARBAGE}", COPY_AGAIN)
        return
    rows = tie.rows(hidden) if hidden is not None and hidden > 0 else None
    if hidden is None or rows is None or tie.alpha_size != tie.scales_bytes(rows, hidden, 1):
        return
    if any(bool((values < 0).any()) for values in windows):
        what = f"it has one scale for {tie.block or hidden} weights, and some are below 0, as zero points are"
        yield error("tie-block", f"{LLM_CONFIG_FILE}, {TIE_KEY}", what, GARBAGE, EXPORT_AGAIN)


def _parts(linear: Linear) -> list[tuple[int, int, int]]:
    """Offset, bytes and bytes per number of every part that holds floats."""
    record = linear.record
    scales = record.offset + record.weight
    bias = (scales + record.alpha, record.bias, 4)
    if linear.coding in {FLOATS, HALVES}:
        return [(record.offset, record.weight, linear.bits // 8), bias]
    return [(scales, record.alpha, linear.scale_bits // 8), bias]


def _sane(stream: BinaryIO, offset: int, length: int, width: int, size: int, *, full: bool) -> bool:
    return all(map(_plausible, _windows(stream, offset, length, width, size, full=full)))


def _windows(
    stream: BinaryIO, offset: int, length: int, width: int, size: int, *, full: bool
) -> Iterator[NDArray[np.float32]]:
    """Numbers at the start, the middle and the end, or all; none if nothing is there, or check_ranges reports it."""
    if length <= 0 or offset < 0 or offset + length > size:
        return
    starts = [0]
    window = length
    if not full and length > 3 * _WINDOW_BYTES:
        window = _WINDOW_BYTES
        starts = [0, (length // 2) // width * width, length - window]
    for start in starts:
        stream.seek(offset + start)
        data = stream.read(window)
        yield np.frombuffer(data, np.float16 if width == 2 else np.float32, len(data) // width).astype(np.float32)


def _plausible(values: NDArray[np.float32]) -> bool:
    # a comparison with NaN is false
    return bool((np.abs(values) < LARGEST_PLAUSIBLE).all())
