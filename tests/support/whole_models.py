"""Whole models whose losses are known without computing them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from qplan.artifact import sha256_bytes
from qplan.formats import QuantFormat
from qplan.sensitivity.joint import Variant
from qplan.sensitivity.metrics import TokenStats
from tests.support.invented_table import make_table

ROWS = np.zeros((16, 32), dtype=np.int64)
TOKENS = ROWS.size // 2


def stats(kl: float) -> TokenStats:
    """The same loss at every token."""
    ones = torch.ones(TOKENS, dtype=torch.float64)
    return TokenStats(ones * kl, ones > 0, ones)


class Whole:
    """Whole models whose loss is a weighted sum: some tensors matter more together than alone."""

    def __init__(
        self,
        factors: Mapping[str, float],
        confirming: Mapping[str, float] | None = None,
        noise: int | None = None,
        common: float = 0.0,
    ) -> None:
        self.table = make_table()
        self.factors, self.confirming, self.noise = factors, confirming, noise
        self.common = common
        self.measured = 0

    def variant_losses(self, _loaded: Any, _tokens: Any, variants: Mapping[str, Variant], **__: Any) -> Any:
        self.measured += len(variants)
        factors = self.confirming if self.confirming is not None and "before" in variants else self.factors
        return {label: self.stats(variant.formats, factors) for label, variant in variants.items()}

    def stats(self, formats: Mapping[str, QuantFormat], factors: Mapping[str, float]) -> TokenStats:
        """The same loss at every token, but for noise: formats round other activations up."""
        exact = stats(self.loss(formats, factors))
        if self.noise is None:
            return exact
        text = ",".join(f"{name}={fmt}" for name, fmt in sorted(formats.items()))
        seed = int(sha256_bytes(f"{self.noise} {text}".encode())[:8], 16)
        scatter = torch.rand(TOKENS, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        return TokenStats(exact.kl * (0.7 + 0.6 * scatter), exact.same_top, exact.nll)

    def loss(self, formats: Mapping[str, QuantFormat], factors: Mapping[str, float]) -> float:
        losses, specs = self.table.kl("normal"), {spec.name: spec.kind for spec in self.table.model.tensors}
        return self.common + math.fsum(factors.get(specs[n], 1.0) * losses[n][f.name] for n, f in formats.items())
