"""Losses of every format of one tensor, from all that its linear saw in a pass there and back; see `fisher`.

A tensor may be looked at as it is, or with the scales of its input channels moved into the norm or matrix before it
(`qplan.folding`): inputs divided by them, columns of weights multiplied, gradients at the output left alone. Both
follow from the same pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from qplan.formats import QuantFormat
from qplan.quantize import Int8Activations
from qplan.quantize.curvature import Curvature
from qplan.quantize.rounder import round_widths
from qplan.sensitivity.rows import RowSample


@dataclass(frozen=True)
class Seen:
    """What one tensor's part of a linear saw of the tokens that losses are estimated on."""

    name: str
    weight: Tensor
    """float32 ``[out, in]``."""
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
    judge: Tensor
    """float32 ``[in, in]``: second moments of `inputs`, and of the gradients at lookups where the head is tied; what
    rounding ``auto`` chooses by."""
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


def losses_of(
    group: Sequence[Seen],
    formats: Sequence[QuantFormat],
    rounding: str,
    curvature: Curvature | None,
    *,
    activations: Int8Activations | None,
    columns: Tensor | None = None,
) -> list[dict[QuantFormat, FormatLoss]]:
    """Losses of tensors with the same input, by format.

    Args:
        group: what they saw; rounded together, since every output feature is rounded by itself.
        formats: the formats.
        rounding: one of `qplan.roundings.ROUNDINGS`.
        curvature: of the inputs that it is fitted to, divided by ``columns``; needed unless it fits to nothing.
        activations: the int8 activations of integer formats; None to leave them out.
        columns: ``[in]``, factors that the weights' columns are multiplied and their inputs divided by.
    """
    inputs, judge = group[0].inputs, group[0].judge
    factor = torch.ones_like(inputs[0, 0]) if columns is None else columns.to(inputs)
    weight = torch.cat([seen.weight[seen.sample.rows.to(inputs.device)] for seen in group]) * factor
    judge = judge / factor.outer(factor)
    flat = inputs.flatten(0, -2) / factor
    products = [seen.products / factor for seen in group]
    rounded: dict[int, list[tuple[Tensor, float]]] = {}
    found: list[dict[QuantFormat, FormatLoss]] = [{} for _ in group]
    for fmt, stored in round_widths(weight, formats, rounding, curvature, judge).items():
        error = stored.dequantize() - weight
        energy = (flat @ error.T).square_().sum(0).to("cpu", torch.float64)
        block = None if activations is None or fmt.is_float else activations.block(fmt)
        if block is not None and activations is not None and block not in rounded:
            rounded[block] = _activations(group, activations, block, factor)
        start = 0
        for place, seen in enumerate(group):
            own = slice(start, start + len(seen.sample.rows))
            start = own.stop
            along = torch.einsum("roi,oi->ro", products[place], error[own]).square().to("cpu", torch.float64)
            squares, _ = seen.sample.sum(along)
            _, stderr = seen.sample.sum(along.sum(0))
            noise, _ = seen.sample.sum(energy[own])
            extra, extra_noise = (torch.zeros_like(squares), 0.0) if block is None else rounded[block][place]
            found[place][fmt] = FormatLoss(squares, float(stderr), extra, float(noise), extra_noise)
    return found


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
            float(seen.weight.square().sum(0) @ energy),
        )
        for seen in group
    ]
