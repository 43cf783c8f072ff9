"""Steps through the columns of a block, one after the other: what error feedback and its refinement take the time for.

Each step is a handful of operations on a few hundred numbers, which Python takes longer to ask for than a processor to
do, and Python lets only one thread ask at a time. So the two loops are compiled by TorchScript, to the same operations
and the same digits; where a torch has none any more, they run as they stand.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, List, TypeVar  # noqa: UP035 - TorchScript reads annotations of old

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Callable

_Loop = TypeVar("_Loop", bound="Callable[..., None]")


def _inverse(scale: Tensor) -> Tensor:
    """``1 / scale``; 0 where a block holds one value only."""
    return torch.where(scale == 0, torch.zeros_like(scale), 1 / scale)


def _compiled(loop: _Loop) -> _Loop:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            found: _Loop = torch.jit.script(loop)
    except (AttributeError, NotImplementedError, OSError, RuntimeError):
        return loop
    return found


@_compiled
def round_columns(  # noqa: PLR0917
    weight: Tensor,
    carried: Tensor,
    factor: Tensor,
    scale: Tensor,
    low: Tensor,
    high: Tensor,
    levels: Tensor,
    errors: Tensor,
    part: int,
) -> None:
    """Round one column after the other, each making up for the errors of those before it.

    Args:
        weight: ``[block, rows]``, less their zero points.
        carried: ``[block, rows]``: errors of the columns before, each multiplied by its row of the factor; used up.
        factor: ``[block, block]``, upper.
        scale: ``[rows]``.
        low: ``[rows]``: smallest levels.
        high: ``[rows]``: largest levels.
        levels: ``[block, rows]``, written.
        errors: ``[block, rows]``, written.
        part: columns that correct each other one by one.
    """
    inverse = _inverse(scale)
    shares: List[float] = (1 / factor.diagonal()).tolist()  # noqa: UP006
    block = weight.size(0)
    start = 0
    while start < block:
        stop = min(start + part, block)
        for column in range(start, stop):
            given, level, error = weight[column], levels[column], errors[column]
            step = torch.add(given, carried[column], alpha=shares[column]).mul_(inverse)
            level.copy_(step.round_().clamp_(low, high))
            error.copy_(torch.addcmul(given, level, scale, value=-1))
            if column + 1 < stop:
                carried[column + 1 : stop].addr_(factor[column, column + 1 : stop], error)
        if stop < block:
            carried[stop:].addmm_(factor[start:stop, stop:].t(), errors[start:stop])
        start = stop


@_compiled
def refine_columns(  # noqa: PLR0917
    pull: Tensor,
    local: Tensor,
    scale: Tensor,
    low: Tensor,
    high: Tensor,
    levels: Tensor,
    steps: Tensor,
    part: int,
) -> None:
    """Coordinate descent: every level in turn takes its best value.

    Args:
        pull: ``[block, rows]``: half the slope of the loss; used up.
        local: ``[block, block]``: second moments.
        scale: ``[rows]``.
        low: ``[rows]``: smallest levels.
        high: ``[rows]``: largest levels.
        levels: ``[block, rows]``, changed.
        steps: ``[block, rows]``, written: how the values moved.
        part: columns that correct each other one by one.
    """
    inverse = _inverse(scale)
    shares: List[float] = (1 / local.diagonal()).tolist()  # noqa: UP006
    block = pull.size(0)
    start = 0
    while start < block:
        stop = min(start + part, block)
        for column in range(start, stop):
            level, step = levels[column], steps[column]
            fresh = torch.addcmul(level, pull[column], inverse, value=shares[column]).round_().clamp_(low, high)
            step.copy_(fresh - level).mul_(scale)
            level.copy_(fresh)
            if column + 1 < stop:
                pull[column + 1 : stop].addr_(local[column, column + 1 : stop], step, alpha=-1)
        if stop < block:
            pull[stop:].addmm_(local[start:stop, stop:].t(), steps[start:stop], alpha=-1)
        start = stop
