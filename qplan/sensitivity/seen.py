"""What one tensor saw in a pass there and back, and what it loses."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from qplan.sensitivity.rows import RowSample


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
    coarseness: Tensor
    """float64 ``[drawn]``: what their output noise is about proportional to, in any format: the squared ranges of a
    row's blocks times the energies of the inputs."""
    coarseness_total: float
    """Its sum over all output features."""
    judge: Tensor | None
    """float32 ``[in, in]``: second moments of `inputs`, and of the gradients at lookups where the head is tied; what
    rounding ``auto`` chooses by; None if nothing asks for them."""
    lookups: Tensor | None = None
    """float32 ``[rows, drawn, in]``: gradient at the drawn rows of a tied head's weight through its lookups."""
    routed: bool = False
    """Whether it is an expert, see `Int8Activations.round`."""
    layer_peak: float = 0.0
    """Largest magnitude that its layer, or the head, returned."""

    def least_peak(self, columns: Tensor | None) -> float:
        """Smallest over tokens of the input's largest magnitude, divided by ``columns [in]``; inf without tokens."""
        inputs = self.inputs if columns is None else self.inputs / columns
        peaks = inputs.abs().amax(-1)
        return float(peaks[peaks > 0].min()) if bool((peaks > 0).any()) else math.inf

    @cached_property
    def products(self) -> Tensor:
        """float32 ``[rows, drawn, in]``: slope of the log-likelihood of each sequence at every drawn weight."""
        products = self.gradients.transpose(1, 2) @ self.inputs
        return products if self.lookups is None else products + self.lookups

    @cached_property
    def tokens(self) -> int:
        """Tokens that `judge` is a mean over."""
        return int(self.inputs.any(-1).sum())

    @cached_property
    def importance(self) -> Tensor:
        """float64 ``[drawn]``: squares of the gradient, summed over tokens."""
        return self.gradients.flatten(0, -2).square().sum(0).to("cpu", torch.float64)


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
    parts: Mapping[str, Tensor] = field(default_factory=dict)
    """float64 ``[rows]`` each: squares from activations alone, by column of `qplan.run.measurement.PARTS`."""

    def with_activations(self, squares: Tensor, noise: float) -> FormatLoss:
        """The same weight errors, with errors of int8 activations."""
        return replace(self, activations=squares, activation_noise=noise)

    def with_parts(self, parts: Mapping[str, Tensor]) -> FormatLoss:
        """The same, with what activations lose under each arithmetic."""
        return replace(self, parts=parts)
