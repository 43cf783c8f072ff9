"""Which rows scales are trained on at each step, and how fast."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from qplan.cost.training import TrainingTokens

TOKENS = 1024
"""Tokens of a step, unless so few steps would be left; or as few more as a whole row takes."""
STEPS, STEPS_OF_FULL = 60, 1024
"""Most steps, and those of ``--tune full``."""
EPOCHS, EPOCHS_OF_FULL = 2, 8
"""Most times that a token is trained on: scales learn by heart what of few tokens is seen more often, but 131,072
tokens seen six times lose 2 % less than seen twice. So ``--tune full`` sees them as often as there are `_MORE`."""
_MORE = 16384
RATE, RATE_OF_MANY = 0.003, 0.006
"""Largest rate, in steps of a block's grid per step of Adam, and that of `MANY` steps: with 32 steps qwen2-8m loses the
same at 3 bits with 0.002 and 0.005, with 128 steps and 0.006 1.3 % less than with 0.003, and with 0.02 training begins
to lose what it gains (``reports/rounding/tuned.md``)."""
MANY = 128
"""Steps from which on the higher rate is taken."""
LEAST_TOKENS = 4096
"""Tokens below which scales learn them by heart."""
_LEAST_STEPS = 8
"""Steps to go through all rows once, if there are so many rows."""
STOPS = 6
"""Times that the loss on held-out rows is measured, evenly spread."""
_WARM = 0.1
"""Of all steps, those in which the rate rises."""


def epochs_of_full(tokens: int) -> int:
    """How many times ``--tune full`` trains on each of so many tokens."""
    return min(EPOCHS_OF_FULL, max(EPOCHS, tokens // _MORE))


@dataclass(frozen=True, eq=False)
class Schedule:
    """The rows of each step."""

    order: NDArray[np.int64]
    """``[steps, rows]``."""
    held_out: NDArray[np.int64]
    """Rows that are not trained on, the last ones."""
    seq_len: int
    fixed_rate: float | None = None
    """The largest rate; None for the one that suits the steps."""

    @classmethod
    def of(
        cls,
        rows: int,
        held_out: int,
        seq_len: int,
        *,
        most: int = STEPS,
        epochs: int = EPOCHS,
        seed: int = 0,
        fixed_rate: float | None = None,
    ) -> Schedule:
        """The schedule for ``tokens [rows + held_out, seq_len]``, in no order but that those held out come last.

        It has at most ``most`` steps and as many times each row as ``epochs``; a smaller number of steps are the first
        of a larger one's.
        """
        together = max(1, min(rows // _LEAST_STEPS, TOKENS // seq_len))
        orders = [np.random.default_rng((seed, epoch)).permutation(rows) for epoch in range(epochs)]
        batches = [order[: len(order) // together * together].reshape(-1, together) for order in orders]
        return cls(np.concatenate(batches)[:most], np.arange(rows, rows + held_out), seq_len, fixed_rate)

    def within(self, passes: float, calibration: int) -> Schedule:
        """As many of the first steps as a number of passes over so many calibration tokens allows."""
        steps = self.steps
        while steps and self.first(steps).tokens.passes(calibration) > passes:
            steps -= 1
        return self.first(steps)

    def first(self, steps: int) -> Schedule:
        """Some first steps; the rate falls within them."""
        return replace(self, order=self.order[:steps])

    @property
    def largest_rate(self) -> float:
        """The largest rate of all steps."""
        if self.fixed_rate is not None:
            return self.fixed_rate
        return RATE if self.steps < MANY else RATE_OF_MANY

    @property
    def is_possible(self) -> bool:
        """Whether there is anything to train on, and to tell what is best."""
        return bool(len(self.held_out) and self.steps)

    @property
    def is_worth_it(self) -> bool:
        """Whether there are tokens and steps enough to gain on others."""
        enough = len(np.unique(self.order)) * self.seq_len >= LEAST_TOKENS and self.steps >= _LEAST_STEPS
        return self.is_possible and enough

    @property
    def tokens(self) -> TrainingTokens:
        """How many go through the model."""
        looked = len(self.held_out) * self.seq_len
        used = len(np.unique(self.order)) * self.seq_len
        return TrainingTokens(used + looked, looked * (1 + len(self.stops)), self.order.size * self.seq_len)

    @property
    def tokens_of_step(self) -> int:
        """How many each step is trained on."""
        return int(self.order.shape[1]) * self.seq_len

    @property
    def steps(self) -> int:
        """Of Adam, at most."""
        return len(self.order)

    @property
    def stops(self) -> frozenset[int]:
        """Numbers of steps after which the loss on held-out rows is measured."""
        return frozenset(round(self.steps * stop / STOPS) for stop in range(1, STOPS + 1))

    def batch(self, step: int) -> NDArray[np.int64]:
        """Rows of a step."""
        found: NDArray[np.int64] = self.order[step]
        return found

    def rate(self, step: int) -> float:
        """Rate of a step: it rises, and falls along a cosine."""
        warm = max(1.0, _WARM * self.steps)
        rising = min(1.0, (step + 1) / warm)
        return self.largest_rate * rising * (1 + math.cos(math.pi * step / self.steps)) / 2
