"""A plan as a mathematical program: one choice per group, the least total value, several limits.

It is a multiple-choice knapsack with any number of linear limits. Costs are integers (bytes, nanoseconds,
weights x bits), so limits need no tolerances; values are floats (nats).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from qplan.errors import QplanError


@dataclass(frozen=True)
class Row:
    """One limit: the costs of the chosen choices sum to at most ``limit``."""

    name: str
    """What is limited, e.g. ``file bytes``."""
    costs: tuple[tuple[int, ...], ...]
    """Cost of every choice of every group; may be negative."""
    limit: int

    @property
    def least(self) -> int:
        """Smallest sum that any picks can have; above the limit, this row alone makes the program infeasible."""
        return sum(min(costs) for costs in self.costs)

    def used(self, picks: Sequence[int]) -> int:
        """Sum of the picked costs."""
        return sum(costs[pick] for costs, pick in zip(self.costs, picks, strict=True))


@dataclass(frozen=True)
class Program:
    """Pick one choice per group so that the sum of values is smallest and every row holds."""

    values: tuple[tuple[float, ...], ...]
    """Value of every choice of every group, finite."""
    rows: tuple[Row, ...]

    def __post_init__(self) -> None:
        """Refuse a malformed program.

        Raises:
            QplanError: no groups, a group without choices, a value that is not finite, or rows of another shape.
        """
        shape = [len(values) for values in self.values]
        if not shape or not all(shape):
            msg = "a program needs at least one group, and every group at least one choice"
            raise QplanError(msg)
        if not all(math.isfinite(value) for values in self.values for value in values):
            msg = "a program's values must be finite"
            raise QplanError(msg)
        for row in self.rows:
            if [len(costs) for costs in row.costs] != shape:
                msg = f"row {row.name!r} does not have one cost per choice"
                raise QplanError(msg)

    def value(self, picks: Sequence[int]) -> float:
        """Sum of the picked values, correctly rounded."""
        return math.fsum(values[pick] for values, pick in zip(self.values, picks, strict=True))

    def holds(self, picks: Sequence[int]) -> bool:
        """Whether every row holds, computed in integers."""
        return all(row.used(picks) <= row.limit for row in self.rows)


class Status(StrEnum):
    """How a solve ended; callers handle every case."""

    OPTIMAL = "optimal"
    """Feasible picks with a relative gap of at most 1e-4: no others are better by more than that."""
    TIME_LIMIT = "time limit"
    """Feasible picks with a larger gap, or no picks if none were found in time."""
    INFEASIBLE = "infeasible"
    """No picks satisfy all rows."""


@dataclass(frozen=True)
class Solution:
    """What the solver found and proved."""

    status: Status
    picks: tuple[int, ...]
    """Index of the chosen choice per group; empty without a solution."""
    objective: float
    """Sum of the picked values; infinite without a solution."""
    bound: float
    """No feasible picks have a smaller sum."""
    choices: int
    """Number of choices in the program, i.e. of its binary variables."""
    seconds: float
    """Wall time."""

    @property
    def gap(self) -> float:
        """(objective - bound) / objective; 0 where nothing better exists."""
        if self.objective == self.bound:
            return 0.0
        return (self.objective - self.bound) / abs(self.objective) if self.objective else math.inf
