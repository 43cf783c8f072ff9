"""Losses of every format of one tensor, from all that its linear saw in a pass there and back; see `fisher`.

A tensor may be looked at as it is, or with the scales of its input channels moved into the norm or matrix before it
(`qplan.folding`): inputs divided by them, columns of weights multiplied, gradients at the output left alone. Both
follow from the same pass.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import torch
from torch import Tensor

from qplan.formats import QuantFormat
from qplan.rounding import Int8Activations
from qplan.rounding.curvature import Curvature
from qplan.rounding.gptq import SWEEPS
from qplan.rounding.rounder import alike, one_thread
from qplan.sensitivity.arithmetics import formulas_of, half_squares, int8_squares
from qplan.sensitivity.seen import FormatLoss, Seen
from qplan.sensitivity.weight_errors import WeightErrors

_Formula = tuple[Int8Activations, int]
"""Int8 activations and the block that shares a scale."""

MOST_AT_ONCE = 8192
"""Input features up to which formats are rounded at the same time, each kind with an ordering of its own."""


def losses_of(
    group: Sequence[Seen],
    formats: Sequence[QuantFormat],
    rounding: str,
    curvature: Curvature | None,
    *,
    activations: Int8Activations | None,
    columns: Tensor | None = None,
    sweeps: int = SWEEPS,
    parts: bool = False,
) -> list[dict[QuantFormat, FormatLoss]]:
    """Losses of tensors with the same input, by format.

    Args:
        group: what they saw; rounded together, since every output feature is rounded by itself.
        formats: the formats.
        rounding: one of `qplan.roundings.ROUNDINGS`.
        curvature: of the inputs that it is fitted to, divided by ``columns``; needed unless it fits to nothing.
        activations: the int8 activations of integer formats; None to leave them out.
        columns: ``[in]``, factors that the weights' columns are multiplied and their inputs divided by.
        sweeps: passes of refinement after GPTQ, see `qplan.rounding.gptq`.
        parts: whether to find what activations lose under every arithmetic, too.
    """
    for seen in group:
        seen.products  # noqa: B018 - made here on all threads, and not by several at once
    work = WeightErrors.of(group, rounding, curvature, columns, sweeps)
    kinds = alike(formats)
    wanted: dict[_Formula, None] = {}
    if activations is not None:
        wanted = {(activations, activations.block(fmt)): None for fmt in formats if not fmt.is_float}
    if parts:
        wanted |= {given: None for fmt in formats if not fmt.is_float for given in formulas_of(fmt).values()}
    tasks: list[Callable[[], Any]] = [partial(work.losses, kind) for kind in kinds]
    tasks += [partial(int8_squares, group, formula, block, work.factor) for formula, block in wanted]
    results = _at_once(tasks, work.weight)
    rounded = dict(zip(wanted, results[len(kinds) :], strict=True))
    half = half_squares(group, work.factor) if parts and any(fmt.is_float for fmt in formats) else None
    found: list[dict[QuantFormat, FormatLoss]] = [{} for _ in group]
    for fmt, losses in (item for kind in results[: len(kinds)] for item in kind.items()):
        for place, loss in enumerate(losses):
            if activations is not None and not fmt.is_float:
                loss = loss.with_activations(*rounded[activations, activations.block(fmt)][place])  # noqa: PLW2901
            if parts and fmt.is_float and half is not None:
                loss = loss.with_parts({"half_nats": half[place]})  # noqa: PLW2901
            elif parts:
                known = {name: rounded[given][place][0] for name, given in formulas_of(fmt).items()}
                loss = loss.with_parts(known)  # noqa: PLW2901
            found[place][fmt] = loss
    return found


def _at_once(tasks: Sequence[Callable[[], Any]], weight: Tensor) -> list[Any]:
    """What tasks return: each works on a thread of its own, where several at once need little memory."""
    threads = min(len(tasks), torch.get_num_threads())
    if threads == 1 or weight.device.type != "cpu" or weight.shape[1] > MOST_AT_ONCE:
        return [task() for task in tasks]
    with one_thread(), ThreadPoolExecutor(threads) as pool:
        return [future.result() for future in [pool.submit(task) for task in tasks]]
