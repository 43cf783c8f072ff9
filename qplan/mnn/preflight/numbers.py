"""Looks in norms, biases and samples of the scales for numbers that no model has, e.g. from flipped bits."""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO

import numpy as np

from qplan.formats import LARGEST_PLAUSIBLE
from qplan.mnn.graph.binary import LAYER_NORM
from qplan.mnn.graph.linear import FLOATS, HALVES, Linear
from qplan.mnn.preflight.finding import COPY_AGAIN, GARBAGE, Finding, error
from qplan.mnn.preflight.model import ModelFolder

_WINDOW_BYTES = 4096


def check_numbers(model: ModelFolder, *, full: bool = False) -> Iterator[Finding]:
    """Look for NaN, infinities and absurd sizes.

    Args:
        model: the folder.
        full: read all scales, not windows at their start, middle and end.
    """
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


def _parts(linear: Linear) -> list[tuple[int, int, int]]:
    """Offset, bytes and bytes per number of every part that holds floats."""
    record = linear.record
    scales = record.offset + record.weight
    bias = (scales + record.alpha, record.bias, 4)
    if linear.coding in {FLOATS, HALVES}:
        return [(record.offset, record.weight, linear.bits // 8), bias]
    return [(scales, record.alpha, linear.scale_bits // 8), bias]


def _sane(stream: BinaryIO, offset: int, length: int, width: int, size: int, *, full: bool) -> bool:
    if length <= 0 or offset < 0 or offset + length > size:
        return True  # nothing there, or reported by check_ranges
    starts = [0]
    window = length
    if not full and length > 3 * _WINDOW_BYTES:
        window = _WINDOW_BYTES
        starts = [0, (length // 2) // width * width, length - window]
    for start in starts:
        stream.seek(offset + start)
        data = stream.read(window)
        values = np.frombuffer(data, np.float16 if width == 2 else np.float32, len(data) // width)
        # a comparison with NaN is false
        if not bool((np.abs(values.astype(np.float32)) < LARGEST_PLAUSIBLE).all()):
            return False
    return True
