"""Targets of rounding that make up for what the layers before lose.

With x a linear's input in the float model and x' what it is given behind quantized layers, the matrix that
minimizes ``E |V x' - W x|^2`` is no longer W: it is ``W + W E[(x - x') x'^T] E[x' x'^T]^-1``, and every other one loses
``tr((V - it) E[x' x'^T] (V - it)^T)`` more. So today's rounding applies, with that target and the moments of x' (GPTAQ,
Li et al., arXiv 2504.02692, which has the same minimum).

Few tokens say little about so many features, and a target that follows their noise loses on all others. So only that
share of the correction is made that each half of the tokens bears out of what the other one says
(``reports/rounding/tuned.md``).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from qplan.errors import MeasurementError
from qplan.formats import QuantFormat
from qplan.rounding.curvature import DAMPING, Curvature
from qplan.rounding.gptq import gptq
from qplan.rounding.gram import add_gram, by_rows, mirrored
from qplan.rounding.stored import StoredTensor


@dataclass
class PairedSums:
    """Sums over tokens of a linear's inputs, in the float model and in the quantized one, of two halves."""

    width: int
    """Input features."""
    _halves: tuple[_Sums, _Sums] = field(init=False)

    def __post_init__(self) -> None:
        """Begin with nothing."""
        self._halves = _Sums(self.width), _Sums(self.width)

    def add(self, exact: Tensor, seen: Tensor, weights: Tensor | None = None) -> None:
        """Add inputs ``[..., in]`` of the same tokens, in the float model and in the quantized one.

        They go to the half that has less.

        Args:
            exact: in the float model.
            seen: in the quantized one.
            weights: how much each token counts, ``[...]``; None for all the same.
        """
        min(self._halves, key=lambda half: half.weight).add(exact, seen, weights)

    def target(self, more: Tensor | None = None) -> CorrectedTarget:
        """What rounding is to come close to; the sums are used up.

        Args:
            more: float32 ``[in, in]``, moments of another use of the same matrix whose inputs are exact: lookups in a
                tied head.

        Raises:
            MeasurementError: no token counts for anything.
        """
        filled = [half for half in self._halves if half.weight]
        if not filled:
            msg = "no token counts: hidden states are all zero or not finite"
            raise MeasurementError(msg)
        shares = [half.weight / sum(one.weight for one in filled) for half in filled]
        halves = [half.taken(more) for half in filled]
        moments, cross = (
            sum((share * part for share, part in zip(shares, parts, strict=True)), torch.zeros(()))
            for parts in ([half.moments for half in halves], [half.cross for half in halves])
        )
        return CorrectedTarget(Curvature(moments), cross, tuple(halves))


@dataclass
class _Sums:
    """Sums over some tokens."""

    width: int
    weight: float = 0
    """Of all tokens together."""
    seen: Tensor = field(init=False)
    """float64 ``[in, in]`` of the quantized model's inputs, see `add_gram`."""
    cross: Tensor = field(init=False)
    """float32 ``[in, in]``: ``(x - x') x'^T``; small, and nothing is factored of it."""

    def __post_init__(self) -> None:
        self.seen = torch.zeros(self.width, self.width, dtype=torch.float64)
        self.cross = torch.zeros(self.width, self.width)

    def add(self, exact: Tensor, seen: Tensor, weights: Tensor | None) -> None:
        rows, others = (given.reshape(-1, self.width).to(torch.float32) for given in (seen, exact))
        if weights is not None:
            roots = weights.reshape(-1, 1).to(torch.float32).sqrt()
            rows, others = rows * roots, others * roots
        add_gram(self.seen, rows)
        torch.addmm(self.cross, (others - rows).T.cpu(), rows.cpu(), out=self.cross)
        self.weight += len(rows) if weights is None else float(weights.sum())

    def taken(self, more: Tensor | None) -> _Half:
        moments = mirrored(by_rows(self.seen, self.weight))
        return _Half(moments if more is None else moments.add_(more), self.cross.div_(self.weight))


@dataclass(frozen=True, eq=False)
class _Half:
    """What one half of the tokens says."""

    moments: Tensor
    """float32 ``[in, in]``: ``E[x' x'^T]``."""
    cross: Tensor
    """float32 ``[in, in]``: ``E[(x - x') x'^T]``."""

    @cached_property
    def _factor(self) -> Tensor:
        """Lower triangle ``[in, in]`` of the damped moments."""
        damped = self.moments.clone()
        damped.diagonal().add_(DAMPING * damped.diagonal().mean())
        return torch.linalg.cholesky(damped, out=damped)  # type: ignore[no-any-return]

    def correction(self, pull: Tensor) -> Tensor:
        """``pull (E[x' x'^T] + damping)^-1`` for ``pull [rows, in]``."""
        found: Tensor = torch.cholesky_solve(pull.T, self._factor).T
        return found


@dataclass(frozen=True, eq=False)
class CorrectedTarget:
    """The weights that come closest to the float model's outputs behind quantized layers, for one input."""

    curvature: Curvature
    """Of the quantized model's inputs."""
    cross: Tensor
    """float32 ``[in, in]``: ``E[(x - x') x'^T]``."""
    halves: tuple[_Half, ...] = ()
    """What each half of the tokens says of both; none or one for no doubt about the correction."""

    def weight(self, weight: Tensor, fmt: QuantFormat) -> Tensor:
        """``W + share W E[(x - x') x'^T] (E[x' x'^T] + damping)^-1``, float32 ``[rows, in]``, for rows of W.

        The damping is that of the curvature: it pulls towards W where inputs say little.
        """
        exact = weight.to(torch.float32)
        ordered = self.curvature.ordered(fmt.block_size(weight.shape[1]))
        pull = (exact @ self.cross)[:, ordered.columns]
        half = torch.linalg.solve_triangular(ordered.factor.T, pull, upper=False, left=False)
        moved: Tensor = torch.linalg.solve_triangular(ordered.factor, half, upper=True, left=False)
        return exact.add(moved[:, ordered.columns.argsort()], alpha=self.share(exact))

    def share(self, weight: Tensor) -> float:
        """The share of the correction of ``weight [rows, in]`` that tokens it was not found with bear out.

        With D what one half makes of it, the share s of D that loses least on the other is
        ``tr(W C D^T) / tr(D H D^T)``. Noise falls with the tokens: where s of one half's correction is none,
        2 s / (1 + s) is none in that of both.
        """
        if len(self.halves) < 2:  # noqa: PLR2004
            return 1.0
        pulls = [weight @ half.cross for half in self.halves]
        along = across = 0.0
        for one, other in ((0, 1), (1, 0)):
            found = self.halves[one].correction(pulls[one])
            along += float(torch.linalg.vecdot(pulls[other], found).sum())
            across += float(torch.linalg.vecdot(found @ self.halves[other].moments, found).sum())
        share = min(1.0, max(0.0, along / across)) if across > 0 else 0.0
        return 2 * share / (1 + share)

    def store(self, weight: Tensor, fmt: QuantFormat, *, restarts: int = 0) -> StoredTensor:
        """Store rows of W, ``[rows, in]``, with error feedback around the corrected target; see `gptq`."""
        return gptq(self.weight(weight, fmt), fmt, self.curvature, restarts=restarts)
