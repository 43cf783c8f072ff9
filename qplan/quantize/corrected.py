"""Targets of rounding that make up for what the layers before lose.

With x a linear's input in the float model and x' what it is given behind quantized layers, the matrix that
minimizes ``E |V x' - W x|^2`` is no longer W: it is ``W + W E[(x - x') x'^T] E[x' x'^T]^-1``, and every other one loses
``tr((V - it) E[x' x'^T] (V - it)^T)`` more. So today's rounding applies, with that target and the moments of x' (GPTAQ,
Li et al., arXiv 2504.02692, which has the same minimum).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from qplan.formats import QuantFormat
from qplan.quantize.curvature import Curvature
from qplan.quantize.gptq import gptq
from qplan.quantize.gram import add_gram, by_rows, mirrored
from qplan.quantize.stored import StoredTensor


@dataclass
class PairedSums:
    """Sums over tokens of a linear's inputs, in the float model and in the quantized one."""

    width: int
    """Input features."""
    tokens: int = 0
    seen: Tensor = field(init=False)
    """float64 ``[in, in]`` of the quantized model's inputs, see `add_gram`."""
    cross: Tensor = field(init=False)
    """float32 ``[in, in]``: ``(x - x') x'^T``; small, and nothing is factored of it."""

    def __post_init__(self) -> None:
        """Begin with nothing."""
        self.seen = torch.zeros(self.width, self.width, dtype=torch.float64)
        self.cross = torch.zeros(self.width, self.width)

    def add(self, exact: Tensor, seen: Tensor) -> None:
        """Add inputs ``[..., in]`` of the same tokens, in the float model and in the quantized one."""
        rows, others = (given.reshape(-1, self.width).to(torch.float32) for given in (seen, exact))
        add_gram(self.seen, rows)
        torch.addmm(self.cross, (others - rows).T.cpu(), rows.cpu(), out=self.cross)
        self.tokens += len(rows)

    def target(self, more: Tensor | None = None) -> CorrectedTarget:
        """What rounding is to come close to; the sums are used up.

        Args:
            more: float32 ``[in, in]``, moments of another use of the same matrix whose inputs are exact: lookups in a
                tied head.
        """
        moments = mirrored(by_rows(self.seen, self.tokens))
        return CorrectedTarget(Curvature(moments if more is None else moments.add_(more)), self.cross.div_(self.tokens))


@dataclass(frozen=True, eq=False)
class CorrectedTarget:
    """The weights that come closest to the float model's outputs behind quantized layers, for one input."""

    curvature: Curvature
    """Of the quantized model's inputs."""
    cross: Tensor
    """float32 ``[in, in]``: ``E[(x - x') x'^T]``."""

    def weight(self, weight: Tensor, fmt: QuantFormat) -> Tensor:
        """``W + W E[(x - x') x'^T] (E[x' x'^T] + damping)^-1``, float32 ``[rows, in]``, for rows of W.

        The damping is that of the curvature: it pulls towards W where inputs say little.
        """
        exact = weight.to(torch.float32)
        ordered = self.curvature.ordered(fmt.block_size(weight.shape[1]))
        pull = (exact @ self.cross)[:, ordered.columns]
        half = torch.linalg.solve_triangular(ordered.factor.T, pull, upper=False, left=False)
        moved: Tensor = torch.linalg.solve_triangular(ordered.factor, half, upper=True, left=False)
        return exact + moved[:, ordered.columns.argsort()]

    def store(self, weight: Tensor, fmt: QuantFormat) -> StoredTensor:
        """Store rows of W, ``[rows, in]``, with error feedback around the corrected target."""
        return gptq(self.weight(weight, fmt), fmt, self.curvature)
