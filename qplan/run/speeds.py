"""Times of models that took turns on one machine, and how far they differ beyond what the machine's load explains."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Literal

Phase = Literal["prefill", "decode"]

SLOWER = 1.03
"""Ratio of times up to which a model counts as no slower, as long as the spread does not decide it before."""


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

    @property
    def differs(self) -> bool:
        """Whether the two models differ beyond noise."""
        return self.low > 1 or self.high < 1

    @property
    def slower(self) -> bool:
        """Whether the first model is slower by more than `SLOWER` beyond noise."""
        return self.low > SLOWER


def ratio_of_times(one: Sequence[Round], other: Sequence[Round], phase: Phase) -> Spread:
    """How much longer one model takes than another, round by round: what loads both in a round cancels out.

    The interval is a sign test's: from the second least to the second largest of at least 8 ratios (93 % and more), and
    all of them of fewer (94 % of 5 rounds, 75 % of 3).

    Args:
        one: times of a model.
        other: times of another in the same rounds.
        phase: which times.
    """
    ratios = sorted(a.time_of(phase) / b.time_of(phase) for a, b in zip(one, other, strict=True))
    left_out = 1 if len(ratios) >= _MANY else 0
    return Spread(median(ratios), ratios[left_out], ratios[-1 - left_out], len(ratios))


_MANY = 8
