"""Second moments of a tensor's inputs, by which rounding weighs errors, prepared once for all its formats."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

import torch
from torch import Tensor

from qplan.errors import MeasurementError

DAMPING = 0.01
"""Fraction of the mean diagonal that is added to H before it is inverted, as in the GPTQ paper."""


_SMALL = 256
"""Size up to which a triangular matrix is inverted at once."""


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
    precision: torch.dtype = torch.float64
    """Type that H is factored in. float32 takes a third of the time and is right to about 1e-5: enough to estimate."""
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
        return Ordered(columns, blocks, hessian, _inverse_factor(hessian.to(self.precision)).to(torch.float32))

    def scaled(self, columns: Tensor) -> Curvature:
        """Moments of inputs divided by ``columns [in]``, ordered and damped as these are: nothing is factored anew."""
        return _Scaled(self.moments / columns.outer(columns), self.damping, self.precision, base=self, columns=columns)


@dataclass(frozen=True, eq=False, kw_only=True)
class _Scaled(Curvature):
    """With ``D`` the columns, the inverse of ``H / D D'`` is ``D inverse(H) D``, so factors are multiplied by D."""

    base: Curvature
    columns: Tensor

    def _order(self, block: int) -> Ordered:
        given = self.base.ordered(block)
        factors = self.columns[given.columns].to(given.hessian)
        return Ordered(given.columns, given.blocks, given.hessian / factors.outer(factors), given.factor * factors)


def _inverse_factor(hessian: Tensor) -> Tensor:
    """Upper ``R`` with ``R' R`` the inverse of H: where ``H = U U'`` with an upper U, R is the inverse of U.

    U is H's Cholesky factor with rows and columns taken from last to first.
    """
    return _inverse_upper(torch.linalg.cholesky(hessian.flip(0, 1)).flip(0, 1))


def _inverse_upper(matrix: Tensor) -> Tensor:
    """Inverse of an upper triangular matrix by halves, which leaves nearly all of it to matrix products."""
    size = len(matrix)
    if size <= _SMALL:
        small: Tensor = torch.linalg.solve_triangular(matrix, torch.eye(size).to(matrix), upper=True)
        return small
    half = size // 2
    inverse = torch.zeros_like(matrix)
    first, last = inverse[:half, :half], inverse[half:, half:]
    first.copy_(_inverse_upper(matrix[:half, :half]))
    last.copy_(_inverse_upper(matrix[half:, half:]))
    torch.mm(first, matrix[:half, half:] @ last, out=inverse[:half, half:]).neg_()
    return inverse
