"""Second moments of a tensor's inputs, by which rounding weighs errors, prepared once for all its formats."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

import torch
from torch import Tensor

from qplan.errors import MeasurementError
from qplan.rounding.gram import divided

DAMPING = 0.01
"""Fraction of the mean diagonal that is added to H before it is factored, as in the GPTQ paper."""


_STRIP = 256
"""Rows of a matrix that are copied at once."""


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
    """float32 ``[in, in]``: upper ``U`` with ``H = U U'``; row j tells how column j's error weighs on those behind.

    ``e H e'`` is the sum over columns j of ``(sum over i <= j of e_i U_ij)^2``, so where all columns before j are
    rounded, the best that column j can do is to make up for ``sum over i < j of e_i U_ij``. That is GPTQ's update,
    which is commonly written with the factor of H's inverse (Chen et al., arXiv 2507.18553).
    """


@dataclass(frozen=True, eq=False)
class Curvature:
    """Second moments of a tensor's inputs.

    Ordering and factoring cost a third of an inversion of H: share one curvature between all formats of all
    tensors that read the same input. May be used by several threads.
    """

    moments: Tensor
    """float32 ``[in, in]``, as measured: ``X'X / tokens``."""
    damping: float = DAMPING
    sparing: bool = False
    """Whether one ordering is kept at a time, in which `scaled` curvatures work as well: for matrices so large that
    there is memory for no more. Then to be used by one thread."""
    _ordered: dict[int, Ordered] = field(default_factory=dict, init=False, repr=False)
    """By block size."""
    _locks: dict[int, threading.Lock] = field(default_factory=dict, init=False, repr=False)

    def __getstate__(self) -> dict[str, object]:
        """Pickle without orderings: another process makes its own."""
        return self.__dict__ | {"_ordered": {}, "_locks": {}}

    @property
    def mean_squares(self) -> Tensor:
        """Mean square of each input feature, ``[in]``, not damped."""
        return self.moments.diagonal()

    def ordered(self, block: int) -> Ordered:
        """The moments for blocks of ``block`` columns.

        Raises:
            MeasurementError: inputs that are all zero or not finite.
        """
        with self._locks.setdefault(block, threading.Lock()):
            if block not in self._ordered:
                if self.sparing:
                    self._ordered.clear()
                self._ordered[block] = self._order(block)
            return self._ordered[block]

    def forget(self) -> None:
        """Free the orderings: they are made again when they are asked for."""
        self._ordered.clear()

    def _order(self, block: int) -> Ordered:
        sizes = self.mean_squares.view(-1, block)
        mean = sizes.mean()
        if not torch.isfinite(mean) or mean <= 0:
            msg = f"inputs with a mean square of {float(mean)}: no calibration token reached this layer"
            raise MeasurementError(msg)
        blocks = sizes.sum(1).argsort(dim=0, descending=True, stable=True)
        inside = sizes.argsort(dim=1, descending=True, stable=True)
        columns = (inside + block * torch.arange(len(sizes), device=inside.device).unsqueeze(1))[blocks].flatten()
        hessian = _reordered(self.moments, columns)
        # features that never fired get a fraction of the mean of all
        hessian.diagonal().add_(self.damping * mean)
        return Ordered(columns, blocks, hessian, _upper_factor(hessian.clone()))

    def scaled(self, columns: Tensor) -> Curvature:
        """Moments of inputs divided by ``columns [in]``, ordered and damped as these are: nothing is factored anew."""
        return _Scaled(self.moments, self.damping, self.sparing, base=self, columns=columns)


@dataclass(frozen=True, eq=False, kw_only=True)
class _Scaled(Curvature):
    """With ``D`` the columns, the rows of H's factor are divided by D to give that of ``H / D D'``.

    `moments` are the base's.
    """

    base: Curvature
    columns: Tensor

    @property
    def mean_squares(self) -> Tensor:
        return self.base.mean_squares / self.columns.square()

    def _order(self, block: int) -> Ordered:
        given = self.base.ordered(block)
        factors = self.columns[given.columns].to(given.hessian)
        if self.sparing:
            self.base.forget()
            hessian = divided(given.hessian, factors, out=given.hessian)
            return Ordered(given.columns, given.blocks, hessian, given.factor.div_(factors.unsqueeze(1)))
        scaled = given.factor / factors.unsqueeze(1)
        return Ordered(given.columns, given.blocks, divided(given.hessian, factors), scaled)


def _reordered(matrix: Tensor, columns: Tensor) -> Tensor:
    """Rows and columns in another order, float32, without a copy in between."""
    found = torch.empty(matrix.shape, dtype=torch.float32, device=matrix.device)
    for part, rows in zip(found.split(_STRIP), columns.split(_STRIP), strict=True):
        part.copy_(matrix[rows][:, columns])
    return found


def _upper_factor(hessian: Tensor) -> Tensor:
    """Upper ``U`` with ``H = U U'``, in H's memory: its Cholesky factor if rows and columns go from last to first."""
    _turn(hessian)
    factor: Tensor = torch.linalg.cholesky(hessian, out=hessian)
    _turn(factor)
    return factor


def _turn(matrix: Tensor) -> None:
    """Take rows and columns from last to first, in place."""
    size = len(matrix)
    for start in range(0, (size + 1) // 2, _STRIP):
        stop = min(start + _STRIP, (size + 1) // 2)
        first, last = matrix[start:stop], matrix[size - stop : size - start]
        turned = first.flip(0, 1)
        first.copy_(last.flip(0, 1))
        last.copy_(turned)
