"""Whether one model loses less than another on the same tokens, or whether noise only makes it seem so."""

from __future__ import annotations

import math
from dataclasses import dataclass

from scipy.special import stdtrit
from torch import Tensor

from qplan.sensitivity.metrics import TokenStats

STRETCH = 16
"""Tokens in a row whose losses are taken together where their scatter is measured."""

CERTAIN = 0.977
"""Probability with which a difference must be no noise: that of two standard errors, if there are many stretches."""


@dataclass(frozen=True)
class Change:
    """How much more one model loses than another on the same tokens."""

    nats: float
    """Mean difference per token."""
    stderr_nats: float
    """Its standard error; infinite where nothing tells it."""
    freedom: int
    """Stretches that it was told from, but for one: few may agree by chance."""

    @property
    def at_most(self) -> float:
        """The largest change that noise may hide, by Student's distribution."""
        if math.isinf(self.stderr_nats):
            return math.inf
        return self.nats + float(stdtrit(self.freedom, CERTAIN)) * self.stderr_nats

    @property
    def is_fall(self) -> bool:
        """Whether the loss falls beyond doubt."""
        return self.at_most < 0


def change_of(before: TokenStats, after: TokenStats, seq_len: int) -> Change:
    """What a change of a model does to its loss.

    Args:
        before: the model as it was, on rows of ``seq_len`` tokens.
        after: the changed one on the same tokens.
        seq_len: tokens of a row.
    """
    more = (after.kl - before.kl).reshape(-1, seq_len)
    stderr = mean_stderr(more)
    stretch = min(STRETCH, seq_len)
    stretches = len(more) * (seq_len // stretch)
    return Change(float(more.mean()), math.inf if stderr is None else stderr, stretches - 1)


def mean_stderr(differences: Tensor) -> float | None:
    """Standard error of the mean of ``differences [rows, seq_len]``, whose neighbors in a row depend on each other.

    An activation on the edge between two int8 codes may be rounded either way. What follows in the sequence reads the
    difference, so means of `STRETCH` tokens are compared and not single tokens. None if there is one stretch alone.
    """
    stretch = min(STRETCH, differences.shape[1])
    usable = differences[:, : differences.shape[1] // stretch * stretch]
    means = usable.reshape(-1, stretch).mean(1)
    return float(means.std() / len(means) ** 0.5) if len(means) > 1 else None
