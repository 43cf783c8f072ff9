"""Weight errors of drawn output features: what they lose, and how large they are at the output.

Error feedback is cheap, its refinement and the choice between candidates are not (`qplan.rounding.gptq`). So all
features that are drawn are rounded by error feedback alone, a few of them in full as well, and what these gain is
brought to the others: two-phase sampling with a ratio (Särndal, Swensson, Wretman, Model Assisted Survey Sampling,
1992, section 9.7). The gain is that of the quadratic form ``e M e'`` with the moments M of the tokens that are judged,
times the square slope at the output: it hardly depends on which of two equally good errors e was made, unlike the
Fisher estimate of a single feature.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import repeat

import torch
from torch import Tensor

from qplan.formats import QuantFormat
from qplan.model.half_products import half_product, half_products_pay
from qplan.rounding import StoredTensor
from qplan.rounding.curvature import Curvature
from qplan.rounding.rounder import round_phases, round_widths
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
        judge, curvature = self.group[0].judge, self.curvature
        if curvature is None or not self._refines_few:
            whole = round_widths(
                self.weight, formats, self.rounding, curvature, judge, columns=self.factor, sweeps=self.sweeps
            )
            errors = [self._error(self.weight, whole[fmt]) for fmt in formats]
            return dict(zip(formats, map(self._found, errors, self._energies(errors)), strict=True))
        rows = torch.arange(len(self.weight), device=self.weight.device).split(self._counts)
        few = torch.cat([own[places] for own, places in zip(rows, self._few, strict=True)])
        feedback, refined = round_phases(
            self.weight, formats, self.rounding, curvature, few, judge=judge, columns=self.factor, sweeps=self.sweeps
        )
        errors = [self._error(self.weight, feedback[fmt]) for fmt in formats]
        better = [self._error(self.weight[few], refined[fmt]) for fmt in formats]
        energies = self._energies(errors + better)
        found = map(self._found, errors, energies[: len(formats)], energies[len(formats) :])
        return dict(zip(formats, found, strict=True))

    @property
    def _refines_few(self) -> bool:
        sampled = any(not seen.sample.whole for seen in self.group)
        return bool(self.sweeps) and sampled and self.rounding in {"auto", "gptq"}

    @cached_property
    def _few(self) -> list[Tensor]:
        """int64 ``[few]`` of each tensor: drawn rows that are rounded in full, evenly spread."""
        return [torch.arange(min(count, REFINED)) * count // min(count, REFINED) for count in self._counts]

    @property
    def _counts(self) -> list[int]:
        """Rows of `weight` that are each tensor's."""
        return [len(seen.sample.rows) for seen in self.group]

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

    def _found(self, error: Tensor, energy: Tensor, better: Tensor | None = None) -> list[FormatLoss]:
        """The loss of each tensor.

        Args:
            error: of all rows.
            energy: see `_energies`.
            better: energies of the few rows that were rounded in full; None if all were.
        """
        refined = repeat(None) if better is None else better.split([len(places) for places in self._few])
        parts = zip(self.group, error.split(self._counts), energy.split(self._counts), self._few, refined, strict=False)
        return [self._loss(*part) for part in parts]

    @staticmethod
    def _loss(seen: Seen, error: Tensor, energy: Tensor, few: Tensor, better: Tensor | None) -> FormatLoss:
        along = torch.einsum("roi,oi->ro", seen.products, error).square().to("cpu", torch.float64)
        squares, _ = seen.sample.sum(along)
        _, stderr = seen.sample.sum(along.sum(0))
        noise = seen.sample.total_like(energy, seen.coarseness, seen.coarseness_total)
        if better is not None:
            gain, off = seen.sample.ratio(energy, better, few, seen.importance)
            stderr = torch.hypot(stderr * gain, squares.sum() * off)
            squares, known = squares * gain, float(energy[few].sum())
            # unweighted: one feature that stands for many would decide, and refining gains as much everywhere
            noise *= float(better.sum()) / known if known > 0 else 1.0
        return FormatLoss(squares, float(stderr), torch.zeros_like(squares), noise, 0.0)
