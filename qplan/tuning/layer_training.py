"""Trains the scales and zeros of one decoder layer together, on what the layer returns.

Matrices that were fitted one after the other know nothing of each other. The layer is given what the quantized layers
before it return, and is to return what it does in the float model: of every token relative to its size, as the norms
behind it see it. This is the first half of EfficientQAT (Chen et al., arXiv 2407.11062), with integers that stay.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from qplan.cost.training import LAYER_EPOCHS, LAYER_HELD_OUT, LAYER_STOPS
from qplan.tuning.trained import TrainedGrid

_STEP_TOKENS = 2048
"""Most tokens of a step, unless a batch has more."""
_LEAST_STEPS, _ENOUGH_STEPS = 32, 64
"""Steps below which nothing is trained, and those that take precedence over tokens of a step."""
_RATE = 0.003
"""In steps of a block's grid per step of Adam; it falls to 0."""
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

    grids: Mapping[str, TrainedGrid]
    """By tensor name: what the layer computes with."""
    batches: Sequence[Callable[[], Example]]
    """Of the layer; where they are few, everything stays as it is."""
    tokens: int
    """In a batch."""
    seed: int
    """Of the order of batches."""

    def run(self) -> None:
        """Train."""
        if len(self._trained) * LAYER_EPOCHS < _LEAST_STEPS:
            return
        values = [value for grid in self.grids.values() for value in grid.parameters.values()]
        adam = torch.optim.Adam(values, betas=_BETAS, eps=1e-12)
        kept, least = _copies(values), self._held_out_loss()
        steps = self._steps()
        stops = {round(len(steps) * stop / LAYER_STOPS) for stop in range(1, LAYER_STOPS + 1)}
        for number, step in enumerate(steps):
            adam.param_groups[0]["lr"] = _RATE * (1 - number / len(steps))
            adam.zero_grad()
            for place in step:
                with torch.enable_grad():
                    loss = self._trained[place]().loss()
                torch.autograd.backward(loss)
            adam.step()
            if number + 1 in stops and (found := self._held_out_loss()) < least:
                kept, least = _copies(values), found
        with torch.no_grad():
            for value, best in zip(values, kept, strict=True):
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


def _copies(values: Sequence[Tensor]) -> list[Tensor]:
    return [value.detach().clone() for value in values]
