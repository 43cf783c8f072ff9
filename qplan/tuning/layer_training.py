"""Trains the matrices of one decoder layer together, on what the layer returns.

Matrices that were fitted one after the other know nothing of each other. The layer is given what the quantized layers
before it return, and is to return what it does in the float model: of every token relative to its size, as the norms
behind it see it. Scales and zeros move by Adam, as in the first half of EfficientQAT (Chen et al., arXiv 2407.11062).
Then integers move too, by signs of gradients, as in AutoRound (Cheng et al., arXiv 2309.05516): they begin in the
middle between two flips, where error feedback left them, and flip if their gradients have one sign most of the time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from qplan.cost.training import LAYER_EPOCHS, LAYER_HELD_OUT, LAYER_STOPS, enough_to_train_layers
from qplan.rounding import IntTensor
from qplan.rounding.codes import codes_of, extreme_levels, levels_of
from qplan.run.safetensors_file import ALL
from qplan.tuning.trained import TrainedGrid

_STEP_TOKENS = 2048
"""Most tokens of a step, unless a batch has more."""
_ENOUGH_STEPS = 64
"""Those that take precedence over tokens of a step."""
_RATE = 0.003
"""Of scales and zeros, in steps of a block's grid per step of Adam; it falls to 0."""
_REACH = 3.0
"""Twice as far as an integer moves, in steps of its grid, if its gradient never changes its sign."""
_BETAS = (0.9, 0.95)


@dataclass(frozen=True)
class Example:
    """One batch of a layer: what it computes, and what it is to return."""

    run: Callable[[], Tensor]
    """Computes what the layer returns, ``[rows, seq_len, hidden]``, with a graph to its weights."""
    wanted: Tensor
    """The float model's."""

    def loss(self) -> Tensor:
        """Mean over tokens of the squared error, relative to the squares of what is wanted."""
        size = self.wanted.square().mean(-1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
        return ((self.run() - self.wanted).square() / size).mean()


@dataclass(frozen=True)
class LayerTraining:
    """The training of one layer."""

    grids: dict[str, TrainedGrid]
    """By tensor name: what the layer computes with, now and in the end."""
    batches: Sequence[Callable[[], Example]]
    """Of the layer; where they are few, everything stays as it is."""
    tokens: int
    """In a batch."""
    seed: int
    """Of the order of batches."""

    def run(self) -> None:
        """Train scales and zeros, and then integers with them; each way only what loses less is kept."""
        if not enough_to_train_layers(len(self.batches)):
            return
        self._descend()
        self.grids.update({name: LearnedGrid(grid.stored()) for name, grid in self.grids.items()})
        self._descend()

    def _descend(self) -> None:
        moved = [grid.moved for grid in self.grids.values() if isinstance(grid, LearnedGrid)]
        values = [value for grid in self.grids.values() for value in grid.parameters.values()]
        adam = torch.optim.Adam(values, betas=_BETAS, eps=1e-12)
        kept, least = _copies([*moved, *values]), self._held_out_loss()
        steps = self._steps()
        stops = {round(len(steps) * stop / LAYER_STOPS) for stop in range(1, LAYER_STOPS + 1)}
        for number, step in enumerate(steps):
            left = 1 - number / len(steps)
            adam.param_groups[0]["lr"] = _RATE * left
            for value in [*moved, *values]:
                value.grad = None
            for place in step:
                with torch.enable_grad():
                    loss = self._trained[place]().loss()
                torch.autograd.backward(loss)
            adam.step()
            with torch.no_grad():
                for value in moved:
                    if value.grad is not None:
                        value.sub_(value.grad.sign_(), alpha=_REACH * left / len(steps))
            if number + 1 in stops and (found := self._held_out_loss()) < least:
                kept, least = _copies([*moved, *values]), found
        with torch.no_grad():
            for value, best in zip([*moved, *values], kept, strict=True):
                value.copy_(best)

    @property
    def _trained(self) -> list[Callable[[], Example]]:
        return [batch for place, batch in enumerate(self.batches) if place % LAYER_HELD_OUT]

    def _held_out_loss(self) -> float:
        held_out = self.batches[::LAYER_HELD_OUT]
        with torch.no_grad():
            return sum(float(batch().loss()) for batch in held_out) / len(held_out)

    def _steps(self) -> list[np.ndarray]:
        """Places of the batches of each step."""
        count = len(self._trained)
        together = max(1, min(_STEP_TOKENS // self.tokens, count * LAYER_EPOCHS // _ENOUGH_STEPS))
        random = np.random.default_rng(self.seed)
        order = np.concatenate([random.permutation(count) for _ in range(LAYER_EPOCHS)])
        return np.array_split(order, len(order) // together)


@dataclass(frozen=True, eq=False)
class LearnedGrid(TrainedGrid):
    """A matrix whose integers move too."""

    moved: nn.Parameter = field(init=False)
    """float32 ``[out, in]``: distance from the integers at the start, in steps of the grid."""

    def __post_init__(self) -> None:
        """Begin where the integers were rounded."""
        super().__post_init__()
        object.__setattr__(self, "moved", nn.Parameter(torch.zeros(self.start.shape, device=self.start.scale.device)))

    def stored(self) -> IntTensor:
        """See `TrainedGrid.stored`."""
        with torch.no_grad():
            scale, zero = self._grid(ALL)
            return _moved_by(self.start, self.moved, scale, zero)

    def weight(self, rows: slice | Tensor = ALL) -> Tensor:
        """See `TrainedGrid.weight`."""
        scale, zero = self._grid(rows)
        found: Tensor = _Moved.apply(self.moved[rows], scale, zero, self.start.rows(rows))  # type: ignore[no-untyped-call]
        return found


class _Moved(torch.autograd.Function):
    """`IntTensor.dequantize` of integers that moved; rounding them lets their gradients straight through."""

    @staticmethod
    def forward(context: Any, moved: Tensor, scale: Tensor, zero: Tensor | None, start: IntTensor) -> Tensor:  # noqa: ANN401
        stored = _moved_by(start, moved, scale, zero)
        context.save_for_backward(stored.codes, scale)
        context.format, context.has_zero = start.format, zero is not None
        return stored.dequantize()

    @staticmethod
    def backward(context: Any, *slopes: Tensor) -> tuple[Tensor, Tensor, Tensor | None, None]:  # noqa: ANN401
        codes, scale = context.saved_tensors
        blocks = slopes[0].view(*scale.shape, -1)
        levels = levels_of(codes, context.format).view_as(blocks)
        higher = blocks.sum(-1) if context.has_zero else None
        return (blocks * scale[..., None]).view_as(codes), torch.linalg.vecdot(blocks, levels), higher, None


def _moved_by(start: IntTensor, moved: Tensor, scale: Tensor, zero: Tensor | None) -> IntTensor:
    low, high = extreme_levels(start.format)
    levels = levels_of(start.codes, start.format).add_(moved).round_().clamp_(low, high)
    return IntTensor(start.format, codes_of(levels, start.format), scale, zero)


def _copies(values: Sequence[Tensor]) -> list[Tensor]:
    return [value.detach().clone() for value in values]
