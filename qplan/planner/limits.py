"""What a plan costs besides its loss: RAM, time and the like, to be limited or minimized."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from qplan.card import ModelCard
from qplan.formats import QuantFormat
from qplan.planner.problem import Choice, GroupChoices, Problem
from qplan.tensors import TensorSpec


@dataclass(frozen=True)
class Cost:
    """A cost that adds up over tensors, in whole units."""

    name: str
    """What messages call it, e.g. ``RAM``."""
    unit: str
    """The unit that people read, e.g. ``MB``."""
    units: float
    """Whole units in one ``unit``: 10**6 for bytes in MB, for nanoseconds in ms."""
    of: Callable[[TensorSpec, QuantFormat], int]
    """Units that one tensor costs in one format, as resolved for its width; may be negative."""
    offset: int = 0
    """Units that every plan uses."""

    def choice(self, card: ModelCard) -> Callable[[GroupChoices, Choice], int]:
        """The cost of a group's choice."""

        def cost(group: GroupChoices, choice: Choice) -> int:
            specs = [card.tensor(name) for name in group.members]
            return sum(self.of(spec, choice.format.resolve(spec.in_features)) for spec in specs)

        return cost

    def total(self, card: ModelCard, formats: Mapping[str, QuantFormat]) -> float:
        """What a plan uses, in ``unit``."""
        return self.counts(card, formats) / self.units

    def counts(self, card: ModelCard, formats: Mapping[str, QuantFormat]) -> int:
        """What a plan uses, in whole units."""
        return self.offset + sum(self.of(spec, formats[spec.name]) for spec in card.planned)


@dataclass(frozen=True)
class ResourceLimit:
    """A limit on a cost."""

    cost: Cost
    limit: float
    """The limit, in the cost's ``unit``."""
    of: str = ""
    """The uniform export that the limit is taken from, such as ``int4``; empty for a limit that a user gave."""

    @property
    def counts(self) -> int:
        """The limit in the cost's whole units, including those that every plan uses."""
        return int(self.limit * self.cost.units)

    def holds(self, card: ModelCard, formats: Mapping[str, QuantFormat]) -> bool:
        """Whether a plan keeps to it."""
        return self.cost.counts(card, formats) <= self.counts

    @property
    def name(self) -> str:
        """Name of the cost."""
        return self.cost.name

    def applied(self, problem: Problem, card: ModelCard) -> Problem:
        """The problem with this limit added."""
        return problem.limited(
            self.name,
            self.cost.unit,
            self.counts - self.cost.offset,
            self.cost.choice(card),
            units=self.cost.units,
            offset=self.cost.offset,
            of=self.of,
        )
