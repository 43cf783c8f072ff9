"""Draws output features of a matrix, so that a sum over all of them is known from a few.

Given its inputs' moments every output feature is rounded by itself, and a Fisher estimate is a sum over output
features. How much one will lose is known roughly before it is rounded: the square slope at its output times the error
that rounding to nearest makes on its inputs. Features are drawn in proportion to that (systematic sampling in its
order, which is stratified by it), and what was found is brought to the whole by the ratio of the sums of the rough
values: Särndal, Swensson, Wretman, Model Assisted Survey Sampling, 1992, sections 3.6.2 and 5.6.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

EVEN = 0.2
"""Share of the draws that goes to all features alike, so that none that was underestimated weighs much."""


@dataclass(frozen=True)
class RowSample:
    """Some output features of a matrix, each standing for several."""

    rows: Tensor
    """int64 ``[drawn]``: which, in ascending order."""
    weights: Tensor
    """float64 ``[drawn]``: how many features each stands for, one over its chance to be drawn."""
    rough: Tensor
    """float64 ``[drawn]``: its rough loss."""
    total: float
    """Sum of all features' rough losses."""

    @classmethod
    def draw(cls, rough: Tensor, count: int, seed: int) -> RowSample:
        """Draw about ``count`` of the features whose rough losses are ``rough [out]``, all if there are no more."""
        rough = rough.to("cpu", torch.float64).clamp(min=0)
        if count >= len(rough):
            return cls(torch.arange(len(rough)), torch.ones_like(rough), rough, float(rough.sum()))
        chances = _chances(rough, count)
        order = rough.argsort(descending=True, stable=True)
        start = torch.rand((), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        passed = (chances[order].cumsum(0) + start).floor()
        drawn = order[torch.diff(passed, prepend=start.floor().unsqueeze(0)) > 0].sort().values
        return cls(drawn, 1 / chances[drawn], rough[drawn], float(rough.sum()))

    @property
    def whole(self) -> bool:
        """Whether all features were drawn."""
        return bool((self.weights == 1).all())

    def ratio(
        self, rough: Tensor, exact: Tensor, places: Tensor, factors: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Estimate the ratio of a sum over all features to what it is with rough values, from some that were drawn.

        Args:
            rough: float64 ``[drawn]``.
            exact: float64 ``[few]``.
            places: int64 ``[few]``: which of the drawn ones these are.
            factors: float64 ``[drawn]``: of both.

        Returns:
            The ratio and its standard error.
        """
        weights = (self.weights if factors is None else self.weights * factors)[places]
        known = rough[places]
        total = known @ weights
        if float(total) <= 0:
            return torch.ones_like(total), torch.zeros_like(total)
        found = (exact @ weights) / total
        residual = weights * (exact - found * known)
        few, drawn = len(places), len(self.rows)
        error = residual.square().sum() * (few / max(1, few - 1)) * (1 - few / drawn)
        return found, error.sqrt() / total

    def total_like(self, found: Tensor, known: Tensor, total: float) -> float:
        """Estimate a sum over all features of what is nearly proportional to something that is known of all.

        Args:
            found: float64 ``[drawn]``: what was found at those that were drawn.
            known: float64 ``[drawn]``: the other at the same ones.
            total: its sum over all features.
        """
        beside = float(known @ self.weights)
        ours = float(found @ self.weights)
        return ours / beside * total if beside > 0 else ours

    def sum(self, found: Tensor) -> tuple[Tensor, Tensor]:
        """Estimate sums over all features.

        Args:
            found: float64 ``[..., drawn]``: what was found at those that were drawn.

        Returns:
            The sums ``[...]`` and their standard errors ``[...]``, 0 if all features were drawn.
        """
        weighted = found @ self.weights
        rough = float(self.rough @ self.weights)
        if self.whole:
            return weighted, torch.zeros_like(weighted)
        scale = self.total / rough if rough else 1.0
        residual = found - (weighted / rough).unsqueeze(-1) * self.rough if rough else found
        variance = residual.square() @ (self.weights * (self.weights - 1))
        return weighted * scale, variance.sqrt() * scale


def _chances(rough: Tensor, count: int) -> Tensor:
    """Chances ``[out]`` to be drawn, which sum to ``count``; 1 where a feature must be."""
    total = rough.sum()
    share = rough / total if total > 0 else torch.full_like(rough, 1 / len(rough))
    share = (1 - EVEN) * share + EVEN / len(rough)
    certain = torch.zeros_like(rough, dtype=torch.bool)
    while True:
        left = count - int(certain.sum())
        chances = torch.where(certain, torch.ones_like(share), share * (left / share[~certain].sum()))
        new = (chances >= 1) & ~certain
        if not bool(new.any()):
            return chances
        certain |= new
