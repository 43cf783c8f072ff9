"""Second moments of a tensor's inputs, by which rounding weighs errors, prepared once for all its formats."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

import torch
from torch import Tensor

from qplan.errors import MeasurementError

DAMPING = 0.01
"""Fraction of the mean diagonal that is added to H before it is inverted, as in the GPTQ paper."""


@dataclass(frozen=True)
class Ordered:
    """Damped second moments H with the columns in the order in which they are rounded.

    MNN stores blocks and columns in place, so blocks stay whole: those with the largest inputs come first, and within
    each the columns with the largest inputs. Columns that are rounded early have most others left to correct them.
    """

    columns: Tensor
    """int64 ``[in]``: the column that is rounded at each step."""
    blocks: Tensor
    """int64 ``[n_blocks]``: the block at each step."""
    hessian: Tensor
    """float32 ``[in, in]``: H, its diagonal raised by ``damping`` times its mean, in that order."""
    factor: Tensor
    """float32 ``[in, in]``: upper Cholesky factor of H's inverse; row j tells how column j's error is spread."""


@dataclass(frozen=True, eq=False)
class Curvature:
    """Second moments of a tensor's inputs.

    Ordering and factoring cost as much as several inversions of H: share one curvature between all formats of all
    tensors that read the same input. May be used by several threads.
    """

    moments: Tensor
    """float32 ``[in, in]``, as measured: ``X'X / tokens``."""
    damping: float = DAMPING
    _ordered: dict[int, Ordered] = field(default_factory=dict, init=False, repr=False)
    """By block size."""
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False)

    @property
    def mean_squares(self) -> Tensor:
        """Mean square of each input feature, ``[in]``, not damped."""
        return self.moments.diagonal()

    def ordered(self, block: int) -> Ordered:
        """The moments for blocks of ``block`` columns.

        Raises:
            MeasurementError: inputs that are all zero or not finite.
        """
        with self._lock:
            if block not in self._ordered:
                self._ordered[block] = self._order(block)
            return self._ordered[block]

    def _order(self, block: int) -> Ordered:
        sizes = self.mean_squares.view(-1, block)
        mean = sizes.mean()
        if not torch.isfinite(mean) or mean <= 0:
            msg = f"inputs with a mean square of {float(mean)}: no calibration token reached this layer"
            raise MeasurementError(msg)
        blocks = sizes.sum(1).argsort(dim=0, descending=True, stable=True)
        inside = sizes.argsort(dim=1, descending=True, stable=True)
        columns = (inside + block * torch.arange(len(sizes), device=inside.device).unsqueeze(1))[blocks].flatten()
        hessian = self.moments.to(torch.float32)[columns][:, columns]
        # features that never fired get a fraction of the mean of all
        hessian.diagonal().add_(self.damping * mean)
        return Ordered(columns, blocks, hessian, _inverse_factor(hessian))


def _inverse_factor(hessian: Tensor) -> Tensor:
    lower = torch.linalg.cholesky(hessian.to(torch.float64))
    inverse = torch.cholesky_inverse(lower)
    upper: Tensor = torch.linalg.cholesky(inverse, upper=True)
    return upper.to(torch.float32)
