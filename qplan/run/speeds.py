"""Times of models that took turns on one machine, and how far they differ beyond what the machine's load explains."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Literal

Phase = Literal["prefill", "decode"]

SLOWER = 1.03
"""Ratio of times up to which a model counts as no slower, as long as the spread does not decide it before."""


LEAST_FELT_S: dict[Phase, float] = {"decode": 5e-5, "prefill": 2e-3}
"""Seconds per token, and of a prompt, below which a difference counts as none."""

_MANY = 8
"""Rounds from which on the least and the largest ratio are left out."""


@dataclass(frozen=True)
class Round:
    """One model's times in one round, in which all models of a session have their turn."""

    prefill_s: float
    decode_s: float
    """Per token: the median of its tokens."""

    def time_of(self, phase: Phase) -> float:
        """Seconds of a phase."""
        return self.prefill_s if phase == "prefill" else self.decode_s


@dataclass(frozen=True)
class Spread:
    """A ratio of times, with the interval that the median of all possible rounds lies in."""

    times: float
    """Median over rounds."""
    low: float
    high: float
    rounds: int
    more_s: float
    """Seconds that the first model takes more, median over rounds."""
    least_felt_s: float
    """Seconds that nobody feels: a model of a few megabytes takes as long for its ops as for its weights."""

    @property
    def differs(self) -> bool:
        """Whether the two models differ beyond noise."""
        return self.low > 1 or self.high < 1

    @property
    def slower(self) -> bool:
        """Whether the first model is slower by more than `SLOWER` beyond noise, and by what can be felt."""
        return self.low > SLOWER and self.more_s > self.least_felt_s


def ratio_of_times(one: Sequence[Round], other: Sequence[Round], phase: Phase) -> Spread:
    """How much longer one model takes than another, round by round: what loads both in a round cancels out.

    The interval is a sign test's: from the second least to the second largest of at least 8 ratios (93 % and more), and
    all of them of fewer (94 % of 5 rounds, 75 % of 3).

    Args:
        one: times of a model.
        other: times of another in the same rounds.
        phase: which times.
    """
    pairs = [(a.time_of(phase), b.time_of(phase)) for a, b in zip(one, other, strict=True)]
    ratios = sorted(mine / its for mine, its in pairs)
    left_out = 1 if len(ratios) >= _MANY else 0
    return Spread(
        median(ratios),
        ratios[left_out],
        ratios[-1 - left_out],
        len(ratios),
        median(mine - its for mine, its in pairs),
        LEAST_FELT_S[phase],
    )
