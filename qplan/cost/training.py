"""What training takes in passes, the unit that measurements are limited in.

A pass is once forwards and backwards over the calibration tokens: three times as much as once forwards.
"""

from __future__ import annotations

from dataclasses import dataclass

MOST_PASSES = 30
"""Beyond this nothing is trained unless it was asked for."""

LAYER_EPOCHS, LAYER_HELD_OUT, LAYER_STOPS = 4, 16, 8
"""Of the training of one layer, first of its scales and then of its integers too: times that each trains on every
batch; of so many batches one is not trained on, and is looked at before and at so many stops."""

FIT_ROWS = 4
"""Sequences of a batch that integers are fitted to, and layers trained on."""
LAYER_LEAST_STEPS = 32
"""Steps below which no layer is trained."""
_MOST_RESTARTS = 512
_SHARE_OF_RESTARTS = 0.5
"""Of the tokens per feature: restarts where layers are not trained; training takes longer than these."""

_PASS = 3
_STEP = 4
"""Forwards, forwards again with a graph, and backwards to inputs and weights."""


def restarts(width: int, tokens: int, *, layers: bool) -> int:
    """How many times the rounding of a tensor is tried again.

    The gain grows with the logarithm of their number, and is real as far as tokens tell what inputs are like: so there
    are as many as tokens per feature, which takes a time that grows with a layer as that of running it does.

    Args:
        width: input features.
        tokens: that it is fitted to.
        layers: whether layers are trained.
    """
    return min(_MOST_RESTARTS, int((1 if layers else _SHARE_OF_RESTARTS) * tokens / width))


def layer_forwards() -> float:
    """How many times a layer runs forwards in its training, or does as much: backwards counts twice."""
    looked = (1 + LAYER_STOPS) / LAYER_HELD_OUT
    return 2 * (looked + _PASS * LAYER_EPOCHS * (1 - 1 / LAYER_HELD_OUT))


def enough_to_train_layers(batches: int) -> bool:
    """Whether so many batches are enough to train layers on."""
    trained = batches - -(-batches // LAYER_HELD_OUT)
    return trained * LAYER_EPOCHS >= LAYER_LEAST_STEPS


@dataclass(frozen=True)
class TrainingTokens:
    """How many tokens go through a model while it is trained."""

    exact: int
    """Through the float model, once."""
    looked: int
    """Through the quantized one, to measure what it loses."""
    trained: int
    """There and back."""

    def passes(self, calibration: int) -> float:
        """The work in passes over so many calibration tokens."""
        return (self.exact + self.looked + _STEP * self.trained) / (_PASS * calibration)
