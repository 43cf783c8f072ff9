"""A limit on a second loss, e.g. the loss under the memory setting that the plan is not optimized for."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from qplan.card import ModelCard
from qplan.formats import QuantFormat
from qplan.planner.problem import Choice, GroupChoices, Problem
from qplan.tensors import TensorSpec

_PICONATS = 1e12
"""Piconats per nat. Losses are rounded to whole piconats, since the solver's rows hold integers."""


@dataclass(frozen=True)
class Ceiling:
    """Limits the sum of single losses that were measured under other conditions than the objective."""

    name: str
    """What messages call it, e.g. ``loss under memory normal``."""
    losses: Mapping[str, Mapping[str, float]]
    """Nats by tensor name and format name, for every choice of the problem."""
    limit_nats: float

    def applied(self, problem: Problem, card: ModelCard) -> Problem:
        """The problem with this limit added.

        Costs are rounded to the nearest piconat, and the limit allows one extra piconat per group for that. If costs
        were rounded up instead, the plan that a limit was taken from (uniform, or this plan before) would exceed it.
        """

        def cost(group: GroupChoices, choice: Choice) -> int:
            return round(_PICONATS * math.fsum(self._loss(card.tensor(name), choice.format) for name in group.members))

        limit = math.floor(self.limit_nats * _PICONATS) + len(problem.groups)
        return problem.limited(self.name, "nats", limit, cost, units=_PICONATS)

    def total_nats(self, formats: Mapping[str, QuantFormat]) -> float:
        """The sum of this ceiling's losses over a plan."""
        return math.fsum(self.losses[name][fmt.name] for name, fmt in formats.items())

    def _loss(self, spec: TensorSpec, fmt: QuantFormat) -> float:
        return self.losses[spec.name][fmt.resolve(spec.in_features).name]
