"""Scales and zeros that are trained, and a model's stored weights with them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from qplan.formats import QuantFormat
from qplan.rounding import IntTensor, StoredTensor
from qplan.rounding.codes import levels_of
from qplan.rounding.grid import storable
from qplan.rounding.stored import row_pieces
from qplan.run.safetensors_file import ALL
from qplan.sensitivity.stored_weights import StoredWeights
from qplan.tuning.straight import straight


@dataclass(frozen=True, eq=False)
class TrainedGrid:
    """A matrix whose integers stay, and whose scales and zeros move away from where they were.

    They move in steps of the grid: by ``wider`` the outermost values of a block, by ``higher`` all of them. One unit is
    then the same change at every width, and one rate serves all tensors.
    """

    start: IntTensor
    wider: nn.Parameter = field(init=False)
    """float32 ``[out, blocks]``, 0 at the start."""
    higher: nn.Parameter | None = field(init=False)
    """The same; None for a symmetric format."""

    def __post_init__(self) -> None:
        """Begin where the integers were rounded."""
        zeros = torch.zeros_like(self.start.scale)
        object.__setattr__(self, "wider", nn.Parameter(zeros))
        object.__setattr__(self, "higher", None if self.start.zero is None else nn.Parameter(zeros.clone()))

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """By name."""
        return {"wider": self.wider} if self.higher is None else {"wider": self.wider, "higher": self.higher}

    def stored(self) -> IntTensor:
        """The matrix as MNN stores it now, with scales and zeros of the format's width."""
        with torch.no_grad():
            scale, zero = self._grid(ALL)
        return replace(self.start, scale=scale, zero=zero)

    def weight(self, rows: slice | Tensor = ALL) -> Tensor:
        """float32 ``[rows, in]``: what the engine computes with, and its gradients."""
        scale, zero = self._grid(rows)
        codes, fmt = self.start.codes[rows], self.start.format
        found: Tensor = _Dequantized.apply(codes, scale, zero, fmt)  # type: ignore[no-untyped-call]
        return found

    def _grid(self, rows: slice | Tensor) -> tuple[Tensor, Tensor | None]:
        """Scales and zeros ``[rows, blocks]`` as they are stored, with the gradients of what is not rounded."""
        start, fmt = self.start.rows(rows), self.start.format
        scale = start.scale * (1 + self.wider[rows] / -fmt.levels[0])
        zero = torch.zeros_like(scale)
        if start.zero is not None and self.higher is not None:
            zero = start.zero + start.scale * self.higher[rows]
        grid = storable(fmt, scale.detach(), zero.detach())
        return straight(scale, grid.scale), None if start.zero is None else straight(zero, grid.zero)


def integers(name: str, stored: StoredTensor) -> IntTensor:
    """A tensor that is to be trained.

    Raises:
        TypeError: it was not stored as integers.
    """
    if isinstance(stored, IntTensor):
        return stored
    msg = f"{name} was to be trained and is not integers"
    raise TypeError(msg)


class _Dequantized(torch.autograd.Function):
    """`IntTensor.dequantize` that keeps the codes alone for its gradients."""

    @staticmethod
    def forward(context: Any, codes: Tensor, scale: Tensor, zero: Tensor | None, fmt: QuantFormat) -> Tensor:  # noqa: ANN401
        context.save_for_backward(codes)
        context.format, context.blocks, context.has_zero = fmt, scale.shape[1], zero is not None
        return IntTensor(fmt, codes, scale, zero).dequantize()

    @staticmethod
    def backward(context: Any, *slopes: Tensor) -> tuple[None, Tensor, Tensor | None, None]:  # noqa: ANN401
        (codes,) = context.saved_tensors
        blocks = slopes[0].view(len(codes), context.blocks, -1)
        levels = levels_of(codes, context.format).view_as(blocks)
        higher = blocks.sum(-1) if context.has_zero else None
        return None, torch.linalg.vecdot(blocks, levels), higher, None


@dataclass
class TrainedWeights(StoredWeights):
    """Stored weights of which some are trained; these are made anew whenever they are asked for."""

    grids: Mapping[str, TrainedGrid] = field(default_factory=dict)
    """By tensor name."""

    def get(self, name: str, fmt: QuantFormat) -> Tensor:
        """See `StoredWeights.get`."""
        return self.grids[name].weight() if name in self.grids else super().get(name, fmt)

    def rows(self, name: str, fmt: QuantFormat, rows: slice) -> Tensor:
        """See `StoredWeights.rows`."""
        return self.grids[name].weight(rows) if name in self.grids else super().rows(name, fmt, rows)

    def pieces(self, name: str, fmt: QuantFormat) -> Iterator[tuple[slice, Tensor]]:
        """See `StoredWeights.pieces`."""
        if name not in self.grids:
            yield from super().pieces(name, fmt)
            return
        for rows in row_pieces(*self.grids[name].start.shape):
            yield rows, self.grids[name].weight(rows)

    def look_up(self, name: str, fmt: QuantFormat, exact: Callable[[Tensor], Tensor], ids: Tensor) -> Tensor:
        """See `StoredWeights.look_up`: of the rows that are wanted alone."""
        if name not in self.grids:
            return super().look_up(name, fmt, exact, ids)
        wanted, places = ids.unique(return_inverse=True)
        return self.grids[name].weight(wanted.cpu())[places].to(exact(ids[..., :1]))
