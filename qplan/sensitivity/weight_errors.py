"""Weight errors of drawn output features: what they lose, and how large they are at the output.

Error feedback is cheap, its refinement and the choice between candidates are not (`qplan.quantize.gptq`). So all
features that are drawn are rounded by error feedback alone, a few of them in full as well, and what these gain is
brought to the others: two-phase sampling with a ratio (Särndal, Swensson, Wretman, Model Assisted Survey Sampling,
1992, section 9.7). The gain is that of the quadratic form ``e M e'`` with the moments M of the tokens that are judged,
times the square slope at the output: it hardly depends on which of two equally good errors e was made, unlike the
Fisher estimate of a single feature.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from qplan.formats import QuantFormat
from qplan.model.half_products import half_product, half_products_pay
from qplan.quantize import StoredTensor
from qplan.quantize.curvature import Curvature
from qplan.quantize.rounder import round_phases, round_widths
from qplan.sensitivity.seen import FormatLoss, Seen

REFINED = 16
"""Of the output features of a tensor that are drawn, how many are rounded in full."""


@dataclass(frozen=True)
class WeightErrors:
    """Drawn rows of some tensors with one input, ready to be rounded."""

    group: Sequence[Seen]
    rounding: str
    """One of `qplan.roundings.ROUNDINGS`."""
    curvature: Curvature | None
    factor: Tensor
    """``[in]``: of the columns."""
    weight: Tensor
    """float32 ``[drawn of all, in]``, multiplied by it."""
    sweeps: int
    """Passes of refinement."""

    @classmethod
    def of(
        cls, group: Sequence[Seen], rounding: str, curvature: Curvature | None, columns: Tensor | None, sweeps: int
    ) -> WeightErrors:
        """Those of a group; see `qplan.sensitivity.layer_losses.losses_of`."""
        inputs = group[0].inputs
        factor = torch.ones_like(inputs[0, 0]) if columns is None else columns.to(inputs)
        weight = torch.cat([seen.weight for seen in group]) * factor
        return cls(group, rounding, curvature, factor, weight, sweeps)

    def losses(self, formats: Sequence[QuantFormat]) -> dict[QuantFormat, list[FormatLoss]]:
        """Losses from weight errors of each tensor, by format."""
        judge, curvature, few = self.group[0].judge, self.curvature, self._few()
        if few is None or curvature is None:
            whole = round_widths(
                self.weight, formats, self.rounding, curvature, judge, columns=self.factor, sweeps=self.sweeps
            )
            errors = [self._error(self.weight, whole[fmt]) for fmt in formats]
            found = map(self._found, errors, self._energies(errors))
            return dict(zip(formats, found, strict=True))
        feedback, refined = round_phases(
            self.weight, formats, self.rounding, curvature, few, judge=judge, columns=self.factor, sweeps=self.sweeps
        )
        errors = [self._error(self.weight, feedback[fmt]) for fmt in formats]
        better = [self._error(self.weight[few], refined[fmt]) for fmt in formats]
        energies = self._energies(errors + better)
        return {
            fmt: self._found(errors[place], energies[place], few, energies[place + len(formats)])
            for place, fmt in enumerate(formats)
        }

    def _few(self) -> Tensor | None:
        """int64 ``[few]``: rows of `weight` to round in full, evenly spread over each tensor's; None for all."""
        sampled = any(not seen.sample.whole for seen in self.group)
        if not self.sweeps or not sampled or self.curvature is None or self.rounding not in ("auto", "gptq"):
            return None
        parts, start = [], 0
        for seen in self.group:
            count = len(seen.sample.rows)
            few = min(count, REFINED)
            parts.append(start + torch.arange(few) * count // few)
            start += count
        return torch.cat(parts).to(self.weight.device)

    def _error(self, weight: Tensor, stored: StoredTensor) -> Tensor:
        """Rounding errors ``[rows, in]``, as inputs and products without the factor meet them."""
        return (stored.dequantize() - weight).div_(self.factor)

    def _energies(self, errors: Sequence[Tensor]) -> list[Tensor]:
        """Squares ``[rows]`` of errors ``[rows, in]`` at the output, summed over tokens, float64."""
        first, every = self.group[0], torch.cat(list(errors))
        if first.judge is None or first.lookups is not None:
            found = (first.inputs.flatten(0, -2) @ every.T).square_().sum(0)
        else:
            half = half_products_pay(every.device)
            found = half_product(every, first.judge) if half else every @ first.judge
            found = found.mul_(every).sum(1) * first.tokens
        found = found.to("cpu", torch.float64)
        return list(torch.split(found, [len(error) for error in errors]))

    def _found(
        self, error: Tensor, energy: Tensor, few: Tensor | None = None, better: Tensor | None = None
    ) -> list[FormatLoss]:
        """The loss of each tensor.

        Args:
            error: of all rows.
            energy: see `_energies`.
            few: rows of which there are better errors.
            better: energies of these.
        """
        losses = []
        start = taken = 0
        for seen in self.group:
            own = slice(start, start + len(seen.sample.rows))
            along = torch.einsum("roi,oi->ro", seen.products, error[own]).square().to("cpu", torch.float64)
            squares, _ = seen.sample.sum(along)
            _, stderr = seen.sample.sum(along.sum(0))
            noise, _ = seen.sample.sum(energy[own])
            if few is not None and better is not None:
                places = few[taken : taken + min(len(seen.sample.rows), REFINED)].cpu() - start
                exact = better[taken : taken + len(places)]
                gain, off = seen.sample.ratio(energy[own], exact, places, seen.importance)
                stderr = torch.hypot(stderr * gain, squares.sum() * off)
                squares, noise = squares * gain, noise * seen.sample.ratio(energy[own], exact, places)[0]
                taken += len(places)
            losses.append(FormatLoss(squares, float(stderr), torch.zeros_like(squares), float(noise), 0.0))
            start = own.stop
        return losses
