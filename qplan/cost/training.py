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
_RESTARTS, _RESTARTS_OF_FULL = 8, 128
"""Times that the rounding of a tensor is tried again, and with ``--tune full``: the gain grows with their logarithm."""

_PASS = 3
_STEP = 4
"""Forwards, forwards again with a graph, and backwards to inputs and weights."""


def restarts(*, layers: bool) -> int:
    """How many times each tensor is tried again, where layers are trained and where they are not."""
    return _RESTARTS_OF_FULL if layers else _RESTARTS


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
