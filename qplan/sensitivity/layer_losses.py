"""Losses of every format of one tensor, from all that its linear saw in a pass there and back; see `fisher`.

A tensor may be looked at as it is, or with the scales of its input channels moved into the norm or matrix before it
(`qplan.folding`): inputs divided by them, columns of weights multiplied, gradients at the output left alone. Both
follow from the same pass.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

from qplan.formats import QuantFormat
from qplan.quantize import Int8Activations
from qplan.quantize.curvature import Curvature
from qplan.quantize.gptq import SWEEPS
from qplan.quantize.rounder import alike, one_thread, round_widths
from qplan.sensitivity.rows import RowSample

MOST_AT_ONCE = 8192
"""Input features up to which formats are rounded at the same time, each kind with an ordering of its own."""


@dataclass(frozen=True)
class Seen:
    """What one tensor's part of a linear saw of the tokens that losses are estimated on."""

    name: str
    weight: Tensor
    """float32 ``[drawn, in]``: its rows that are drawn."""
    columns: Tensor
    """float32 ``[in]``: squares of the weight, summed over all output features."""
    inputs: Tensor
    """float32 ``[rows, tokens, in]``: a row is a sequence."""
    gradients: Tensor
    """float32 ``[rows, tokens, drawn]``: of the log-likelihood, at the outputs that are drawn."""
    slopes: Tensor
    """float32 ``[rows, tokens, in]``: the same at the input, through this tensor alone."""
    signal: float
    """Squares of the output, summed over tokens and output features."""
    sample: RowSample
    """The output features that are drawn."""
    judge: Tensor | None
    """float32 ``[in, in]``: second moments of `inputs`, and of the gradients at lookups where the head is tied; what
    rounding ``auto`` chooses by; None if nothing asks for them."""
    lookups: Tensor | None = None
    """float32 ``[rows, drawn, in]``: gradient at the drawn rows of a tied head's weight through its lookups."""
    routed: bool = False
    """Whether it is an expert, see `Int8Activations.round`."""

    @cached_property
    def products(self) -> Tensor:
        """float32 ``[rows, drawn, in]``: slope of the log-likelihood of each sequence at every drawn weight."""
        products = self.gradients.transpose(1, 2) @ self.inputs
        return products if self.lookups is None else products + self.lookups


@dataclass(frozen=True)
class FormatLoss:
    """The loss of a tensor in one format."""

    weights: Tensor
    """float64 ``[rows]``: squares ``E[a^2]`` of each sequence from weight errors, see `fisher`."""
    weights_stderr: float
    """Standard error of the sum of `weights` over sequences, from drawing output features."""
    activations: Tensor
    """float64 ``[rows]``: squares from int8 activations; zeros for floats."""
    noise: float
    """Squares of the output's error from weight errors, summed as `Seen.signal` is."""
    activation_noise: float
    """The same from int8 activations."""

    def with_activations(self, squares: Tensor, noise: float) -> FormatLoss:
        """The same weight errors, with errors of int8 activations."""
        return replace(self, activations=squares, activation_noise=noise)


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
    work = _Work.of(group, rounding, curvature, columns, sweeps)
    parts = alike(formats)
    tasks: list[Callable[[], Any]] = [partial(work.rounded, part) for part in parts]
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


@dataclass(frozen=True)
class _Work:
    """Drawn rows of some tensors with one input, ready to be rounded."""

    group: Sequence[Seen]
    rounding: str
    curvature: Curvature | None
    factor: Tensor
    """``[in]``: of the columns."""
    weight: Tensor
    """float32 ``[drawn of all, in]``, multiplied by it."""
    sweeps: int

    @classmethod
    def of(
        cls, group: Sequence[Seen], rounding: str, curvature: Curvature | None, columns: Tensor | None, sweeps: int
    ) -> _Work:
        inputs = group[0].inputs
        factor = torch.ones_like(inputs[0, 0]) if columns is None else columns.to(inputs)
        weight = torch.cat([seen.weight for seen in group]) * factor
        return cls(group, rounding, curvature, factor, weight, sweeps)

    def rounded(self, formats: Sequence[QuantFormat]) -> dict[QuantFormat, list[FormatLoss]]:
        """Losses from weight errors of each tensor, by format."""
        found: dict[QuantFormat, list[FormatLoss]] = {}
        inputs, judge = self.group[0].inputs, self.group[0].judge
        stored_as = round_widths(
            self.weight, formats, self.rounding, self.curvature, judge, columns=self.factor, sweeps=self.sweeps
        )
        for fmt, stored in stored_as.items():
            # what inputs and products without the factor meet
            error = (stored.dequantize() - self.weight).div_(self.factor)
            energy = (inputs.flatten(0, -2) @ error.T).square_().sum(0).to("cpu", torch.float64)
            losses = []
            start = 0
            for seen in self.group:
                own = slice(start, start + len(seen.sample.rows))
                start = own.stop
                along = torch.einsum("roi,oi->ro", seen.products, error[own]).square().to("cpu", torch.float64)
                squares, _ = seen.sample.sum(along)
                _, stderr = seen.sample.sum(along.sum(0))
                noise, _ = seen.sample.sum(energy[own])
                losses.append(FormatLoss(squares, float(stderr), torch.zeros_like(squares), float(noise), 0.0))
            found[fmt] = losses
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
