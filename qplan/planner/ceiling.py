"""A second loss that a plan may not exceed, e.g. under the memory setting that it is not optimized for."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from qplan.card import ModelCard
from qplan.formats import QuantFormat
from qplan.planner.problem import Choice, GroupChoices, Problem
from qplan.tensors import TensorSpec

_PICONATS = 1e12
"""Losses become integers of 1e-12 nats, rounded to nearest: the solver's rows are exact."""


@dataclass(frozen=True)
class Ceiling:
    """Limits the sum of single losses that were measured under other conditions than the objective."""

    name: str
    """For messages, e.g. ``loss under memory normal``."""
    losses: Mapping[str, Mapping[str, float]]
    """Nats by tensor name and format name; every choice of the problem must be there."""
    limit_nats: float

    def applied(self, problem: Problem, card: ModelCard) -> Problem:
        """The problem with this limit added.

        Costs are rounded to whole piconats; the limit grants that rounding to each group. Rounded up instead, the plan
        that defines a limit (uniform's loss, or the plan itself when it is solved again) would break it.
        """

        def cost(group: GroupChoices, choice: Choice) -> int:
            return round(_PICONATS * math.fsum(self._loss(card.tensor(name), choice.format) for name in group.members))

        limit = math.floor(self.limit_nats * _PICONATS) + len(problem.groups)
        return problem.limited(self.name, "nats", limit, cost, units=_PICONATS)

    def total_nats(self, formats: Mapping[str, QuantFormat]) -> float:
        """What a plan loses by this ceiling's losses."""
        return math.fsum(self.losses[name][fmt.name] for name, fmt in formats.items())

    def _loss(self, spec: TensorSpec, fmt: QuantFormat) -> float:
        return self.losses[spec.name][fmt.resolve(spec.in_features).name]
