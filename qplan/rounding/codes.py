"""What an integer format's codes stand for, and how weights are rounded to it: the one place that knows.

A *level* is a signed integer that a code stands for: the engine finds the table of them in a record's header. A
*step* is a weight in units of its block's grid, ``(w - zero) / scale``.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, float32, uint8

from qplan.formats import QuantFormat


def codes_of(levels: Tensor, fmt: QuantFormat) -> Tensor:
    """Codes, uint8, of levels of a format; any shape."""
    return (levels - fmt.levels[0]).to(uint8)


def levels_of(codes: Tensor, fmt: QuantFormat) -> Tensor:
    """Levels, float32, that codes stand for; any shape."""
    return codes.to(float32).add_(fmt.levels[0])


def extreme_levels(fmt: QuantFormat) -> tuple[int, int]:
    """Smallest and largest level that weights are rounded to."""
    return fmt.used_levels[0], fmt.used_levels[-1]


def to_levels(fmt: QuantFormat) -> Callable[[Tensor], Tensor]:
    """A function that rounds steps to their nearest levels, in place; made once, called for every column."""
    low, high = extreme_levels(fmt)
    return lambda steps: steps.round_().clamp_(low, high)
