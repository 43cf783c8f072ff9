"""The curvatures that one layer's tensors are rounded by, each made once."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from qplan.rounding.curvature import Curvature
from qplan.rounding.gram import divided, gram
from qplan.rounding.moments import Moments
from qplan.rounding.rounder import FEW_TOKENS
from qplan.sensitivity.layer_losses import MOST_AT_ONCE
from qplan.sensitivity.seen import Seen


@dataclass
class LayerCurvatures:
    """Curvatures of a layer's inputs, as they are and divided by the factors of a fold."""

    moments: Moments | None
    """Of the inputs that rounding is fitted to, without a tied head's lookups; None to fit to nothing."""
    rounding: str
    """One of `qplan.roundings.ROUNDINGS`."""
    lookups: Tensor | None = None
    """``[tokens, hidden]``: gradients at a tied head's lookups, of the same windows; None elsewhere."""
    _kept: dict[str, Curvature] = field(default_factory=dict)
    _folded: dict[str, Curvature] = field(default_factory=dict)

    def of(self, seen: Seen, columns: Tensor | None, *, rough: bool = False) -> tuple[str, Curvature | None]:
        """How a tensor is rounded, and the curvature that this is fitted to.

        Args:
            seen: the tensor.
            columns: factors of its columns; None if they stay as they are.
            rough: whether columns are ordered and H is damped as without the factors, which costs next to nothing.
        """
        if self.moments is None:
            return self.rounding, None
        if min(self.moments.tokens[seen.name], int(seen.inputs.any(-1).sum())) < FEW_TOKENS:
            return "rtn", None
        key = self.moments.key_of[seen.name]
        if key in self._folded and columns is not None and not rough:
            return self.rounding, self._folded[key]
        given = self._given(key, seen, self.moments)
        if columns is None:
            return self.rounding, given
        if rough:
            return self.rounding, given.scaled(columns)
        # nothing asks for the others any more
        given = self._kept.pop(key)
        moments = divided(given.moments, columns, out=given.moments)
        self._folded[key] = Curvature(moments, sparing=given.sparing)
        return self.rounding, self._folded[key]

    def _given(self, key: str, seen: Seen, moments: Moments) -> Curvature:
        if key not in self._kept:
            if any(kept.sparing for kept in (*self._kept.values(), *self._folded.values())):
                self._forget()
            matrix = self._matrix(seen, moments)
            if len(matrix) > MOST_AT_ONCE:
                self._forget()
            self._kept[key] = Curvature(matrix, sparing=len(matrix) > MOST_AT_ONCE)
        return self._kept[key]

    def _forget(self) -> None:
        """Free all, where a large matrix leaves no room for others: they are read and factored again if need be."""
        self._kept.clear()
        self._folded.clear()

    def _matrix(self, seen: Seen, moments: Moments) -> Tensor:
        matrix = moments.of(seen.name).to(seen.weight.device)
        if self.lookups is not None:
            matrix += gram(self.lookups) / len(self.lookups)
        return matrix
