"""What runs forwards: layers, the head, and rounding what the layers hold. Every command consists of these."""

from __future__ import annotations

from collections.abc import Sequence

from qplan.cost.shape import Input, Shape
from qplan.cost.work import NOTHING, Work

FLOAT_BYTES = 4

# counts of the code, and constants set from profiles of the embedded model, qwen2-8m and two layers of the 0.5B shape
_LAYER_VALUES = 14
"""Numbers that a decoder layer reads and writes beside its products, per number that its linears read or write."""
_SCORE_VALUES = 4
"""Per attention score."""
LOGIT_VALUES = 12
"""The same of the head, per logit, forwards and backwards."""
REFERENCE_VALUES, COMPARED_VALUES = 47, 13
"""Per logit of a reference that others are compared with, and of what is compared: `qplan.sensitivity.metrics`."""
NEAREST_VALUES = 8
"""Per weight that is rounded to nearest."""
SWEEPS, _CANDIDATES = 3, 3
"""Of `qplan.rounding.gptq`, and roundings that ``auto`` chooses from."""
_FEEDBACK, _FIRST, _AGAIN = 0.4, 0.75, 0.45
"""Of what rounding takes beside products, what error feedback takes without refinement, and with it, but without other
candidates, and what it takes once more."""
_TRIED = 64
"""Rows of a large matrix that these are tried on: `qplan.rounding.rounder`."""


def layer_forward(layer: Sequence[Input], tokens: int, seq_len: int, hidden: int, *, streamed: bool = False) -> Work:
    """A layer, once forwards."""
    weights = sum(given.weights * given.share for given in layer)
    numbers = sum((given.width + given.outputs) * given.share for given in layer)
    scores = seq_len * hidden
    return Work(
        flops=tokens * (2.0 * weights + 4.0 * scores),
        values=tokens * (_LAYER_VALUES * numbers + _SCORE_VALUES * scores / 64),
        read=2.0 * sum(given.weights for given in layer) if streamed else 0.0,
    )


def head_forward(shape: Shape, tokens: int) -> Work:
    """The head, once forwards, and what is computed of its logits."""
    return Work(flops=2.0 * tokens * shape.head.weights, values=LOGIT_VALUES / 2 * tokens * shape.head.outputs)


def all_forward(shape: Shape, tokens: int, seq_len: int, *, streamed: bool = False) -> Work:
    """The whole model, once forwards."""
    total = head_forward(shape, tokens)
    for layer in shape.layers:
        total += layer_forward(layer, tokens, seq_len, shape.hidden, streamed=streamed)
    return total


def rounding(width: int, rows: int, formats: int, *, fits: bool, chosen: bool, sweeps: int = SWEEPS) -> Work:
    """Rows of a matrix in formats that differ in their width alone.

    Args:
        width: input features.
        rows: output features.
        formats: how many.
        fits: whether rounding is fitted to moments, whose factors are found beforehand.
        chosen: whether it chooses between candidates (``auto``).
        sweeps: of refinement, each as long as the rounding before it.
    """
    if not fits:
        return Work(values=float(NEAREST_VALUES * formats * rows * width))
    tried = rows <= 2 * _TRIED
    share = _FEEDBACK if not sweeps else 1.0 if tried else _FIRST
    found = Work(roundings=share * formats * rows * width)
    products = (2 * sweeps + 1 + (2 * _CANDIDATES if chosen and tried else 0)) * float(width) ** 2
    return found + Work(rounding_flops=products * rows * formats, steps=width * (1 + sweeps) / (1 + SWEEPS))


def rounding_again(width: int, rows: int, times: int) -> Work:
    """Rows of a matrix rounded again so many times, on other grids: `rounding` without a search for these."""
    products = (2 * SWEEPS + 3) * float(width) ** 2
    return Work(roundings=_AGAIN * rows * width, rounding_flops=products * rows).times(times)


def factored(width: int, *, fits: bool = True) -> Work:
    """The factors of an input's moments."""
    return Work(factor_flops=float(width) ** 3 / 3) if fits else NOTHING
