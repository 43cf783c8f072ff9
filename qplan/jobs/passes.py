"""What measurements cost, in passes: forward and backward once over the calibration tokens."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from qplan.card import ModelCard
from qplan.formats import QuantFormat
from qplan.roundings import needs_tokens

FORWARD = 1 / 2
"""Passes that a forward pass takes: backwards, gradients at inputs alone take as many products."""

_ROUNDING_TOKENS = 3 * 4096
"""Tokens that pass through weights forwards and backwards in the time that rounding these takes; ``reports/scale``."""


@dataclass
class PassBudget:
    """Passes that may still be taken."""

    most: float
    spent: float = 0.0

    @property
    def left(self) -> float:
        """Passes that may still be taken."""
        return self.most - self.spent

    def take(self, passes: float) -> bool:
        """Spend some, if as many are left."""
        if self.spent + passes > self.most:
            return False
        self.spent += passes
        return True


@dataclass(frozen=True)
class PassCosts:
    """Costs of a model's measurements, from the shapes of its tensors."""

    card: ModelCard
    tokens: int
    """Calibration tokens: those of a pass."""
    measured: int
    """Those of them that losses are measured on."""
    rounding: str
    """One of `qplan.roundings.ROUNDINGS`."""

    def rounded(self, name: str, fmt: QuantFormat) -> float:
        """Rounding a whole tensor."""
        if fmt.is_float or not needs_tokens(self.rounding):
            return 0.0
        return _ROUNDING_TOKENS / self.tokens * self.card.tensor(name).weights / self._all

    def replayed(self, name: str) -> float:
        """Running what a changed tensor reaches; as much again, once for all of its layer, to check the unchanged."""
        spec = self.card.tensor(name)
        first = -1 if spec.tied else self._place(spec.layer)
        reached = sum(other.weights for other in self.card.tensors if self._place(other.layer) >= first)
        return self.reference * reached / self._all

    @property
    def reference(self) -> float:
        """Running the model as it is, which measured losses are compared with."""
        return FORWARD * self.measured / self.tokens

    def _place(self, layer: int | None) -> int:
        return len(self.card.tensors) if layer is None else layer

    @cached_property
    def _all(self) -> int:
        return sum(spec.weights for spec in self.card.tensors)
