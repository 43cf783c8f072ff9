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
from qplan.quantize import Int8Activations
from qplan.quantize.curvature import Curvature
from qplan.quantize.gptq import SWEEPS
from qplan.quantize.rounder import alike, one_thread
from qplan.sensitivity.seen import FormatLoss, Seen
from qplan.sensitivity.weight_errors import WeightErrors

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
) -> list[dict[QuantFormat, FormatLoss]]:
    """Losses of tensors with the same input, by format.

    Args:
        group: what they saw; rounded together, since every output feature is rounded by itself.
        formats: the formats.
        rounding: one of `qplan.roundings.ROUNDINGS`.
        curvature: of the inputs that it is fitted to, divided by ``columns``; needed unless it fits to nothing.
        activations: the int8 activations of integer formats; None to leave them out.
        columns: ``[in]``, factors that the weights' columns are multiplied and their inputs divided by.
        sweeps: passes of refinement after GPTQ, see `qplan.quantize.gptq`.
    """
    for seen in group:
        seen.products  # noqa: B018 - made here on all threads, and not by several at once
    work = WeightErrors.of(group, rounding, curvature, columns, sweeps)
    parts = alike(formats)
    tasks: list[Callable[[], Any]] = [partial(work.losses, part) for part in parts]
    blocks: list[int] = []
    if activations is not None:
        blocks = list(dict.fromkeys(activations.block(fmt) for fmt in formats if not fmt.is_float))
        tasks += [partial(_activations, group, activations, block, work.factor) for block in blocks]
    found: list[dict[QuantFormat, FormatLoss]] = [{} for _ in group]
    results = _at_once(tasks, work.weight)
    extras = dict(zip(blocks, results[len(parts) :], strict=True))
    for fmt, losses in (item for part in results[: len(parts)] for item in part.items()):
        extra = None if activations is None or fmt.is_float else extras[activations.block(fmt)]
        for place, loss in enumerate(losses):
            found[place][fmt] = loss if extra is None else loss.with_activations(*extra[place])
    return found


def _at_once(tasks: Sequence[Callable[[], Any]], weight: Tensor) -> list[Any]:
    """What tasks return: each works on a thread of its own, where several at once need little memory."""
    threads = min(len(tasks), torch.get_num_threads())
    if threads == 1 or weight.device.type != "cpu" or weight.shape[1] > MOST_AT_ONCE:
        return [task() for task in tasks]
    with one_thread(), ThreadPoolExecutor(threads) as pool:
        return [future.result() for future in [pool.submit(task) for task in tasks]]


def _activations(
    group: Sequence[Seen], activations: Int8Activations, block: int, factor: Tensor
) -> list[tuple[Tensor, float]]:
    """Of each tensor, squares ``[rows]`` from int8 activations, and the output noise they make."""
    inputs = group[0].inputs / factor
    # the errors as they are without the factor
    error = activations.round(inputs, block, routed=group[0].routed).sub_(inputs).mul_(factor)
    energy = error.flatten(0, -2).square().sum(0)
    return [
        (
            torch.linalg.vecdot(seen.slopes, error).square().sum(-1).to("cpu", torch.float64),
            float(seen.columns @ energy),
        )
        for seen in group
    ]
