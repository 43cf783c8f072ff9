"""Rounding that gradients go straight through, as if nothing had been rounded (Bengio et al., arXiv 1308.3432)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from qplan.rounding import Int8Activations


class _Straight(torch.autograd.Function):
    """The rounded value forwards, the identity backwards."""

    @staticmethod
    def forward(_context: Any, _value: Tensor, rounded: Tensor) -> Tensor:  # noqa: ANN401 - torch's own
        return rounded.view_as(rounded)

    @staticmethod
    def backward(_context: Any, *slopes: Tensor) -> tuple[Tensor, None]:  # noqa: ANN401
        return slopes[0], None


def straight(value: Tensor, rounded: Tensor) -> Tensor:
    """``rounded``, to the bit, with the gradient of ``value``; both of one shape."""
    found: Tensor = _Straight.apply(value, rounded)  # type: ignore[no-untyped-call]
    return found


@dataclass(frozen=True)
class StraightActivations(Int8Activations):
    """The engine's int8 activations with gradients."""

    @classmethod
    def of(cls, activations: Int8Activations) -> StraightActivations:
        """The same ones."""
        return cls(activations.path, activations.dynamic_option, activations.arithmetic)

    def round(self, x: Tensor, block: int = 0, *, routed: bool = False) -> Tensor:
        """See `Int8Activations.round`."""
        with torch.no_grad():
            rounded = super().round(x.detach(), block, routed=routed)
        return straight(x, rounded)
