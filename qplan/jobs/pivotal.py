"""The default effort, after its one pass: measures what plans hang on, within a budget of passes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from torch import Tensor

from qplan.cost.file_bytes import FixedBytes, estimate_fixed
from qplan.formats import Formats, QuantFormat
from qplan.jobs.additivity import frontier_plans, sum_nats
from qplan.jobs.deciding import decisions
from qplan.jobs.options import MEASURED_PASSES
from qplan.jobs.passes import PassBudget, PassCosts
from qplan.notes import note
from qplan.rounding.rounder import Rounder
from qplan.run.additivity import JointPoint
from qplan.run.table import SensitivityTable
from qplan.sensitivity.analysis import Analysis, Entry
from qplan.sensitivity.blend import blend, width_scales
from qplan.sensitivity.measured import measure
from qplan.sensitivity.stand_ins import stand_in_losses, stand_ins_of
from qplan.settings import Progress, Say
from qplan.spread.work import Workers

_DRAWS = 4
"""How often losses are drawn from their error distributions, per budget."""

_MEASURED_TOKENS = 1024
"""Fewest tokens to measure on: what a whole loses over the sum of its parts, or a part over its estimate on the same
tokens, is known well from few."""


@dataclass
class Pivotal:
    """One analysis whose losses are estimated, and what it may still take."""

    analysis: Analysis
    """Of the model that plans are about, with the run's rounder, and estimates of all entries."""
    rounder: Rounder
    say: Say
    progress: Progress | None = None
    workers: Workers | None = None
    """Of a cluster, who measure instead of this process."""

    def table(self) -> SensitivityTable:
        """Measure, and return the finished table.

        Raises:
            MeasurementError: a measurement is impossible.
        """
        analysis = self.analysis
        budget = PassBudget(MEASURED_PASSES)
        most = "1 pass" if budget.most == 1 else f"{budget.most:g} passes"
        self.say(
            f"measurements: at most {most}; a pass is once forwards and backwards over the "
            f"{self._tokens:,} calibration tokens"
        )
        wholes = self._whole_plans(budget)
        measured = self._deciding(budget)
        scales = width_scales(analysis, measured)
        told = note(
            "measured-within-passes",
            measured=len(measured),
            losses=sum(1 for _ in analysis.entries()),
            plans=len(wholes),
            passes=budget.spent,
            most=budget.most,
            scales={f"{bits} bits": scale for bits, scale in scales.items()},
        )
        table = self._known(measured)
        joint = tuple(JointPoint(table.goal, sum_nats(table, formats), nats) for formats, nats in wholes)
        return replace(table, notes=(*table.notes, told), joint=joint)

    def _whole_plans(self, budget: PassBudget) -> list[tuple[Formats, float]]:
        """Plans and their joint losses in nats, on as few batches as suffice to know how losses add up.

        Where the budget allows for fewer than all along the frontier, some of them, evenly spread.
        """
        analysis = self.analysis
        table = analysis.table("auto", analysis.all_rows("gradient"))
        batches, costs = self._some_batches, self._costs
        plans = _spread(frontier_plans(table), int(budget.left / costs.reference) - 1)
        if not plans:
            return []
        budget.take((1 + len(plans)) * costs.reference)
        self.say(f"measuring {len(plans)} whole plans on {costs.measured:,} tokens: how losses add up")
        losses = stand_in_losses(analysis, plans, batches, stand_ins_of(analysis, self.rounder))
        # what these batches lose is brought to all of them by the sums of single losses on either
        part = replace(table, measurements=tuple(row for row in table.measurements if row.batch < len(batches)))
        found = []
        for formats, nats in zip(plans, losses, strict=True):
            here = sum_nats(part, formats)
            found.append((formats, nats * sum_nats(table, formats) / here if here else nats))
        return found

    @cached_property
    def _some_batches(self) -> tuple[Tensor, ...]:
        return self.analysis.first_batches(_MEASURED_TOKENS)

    @cached_property
    def _costs(self) -> PassCosts:
        measured = sum(batch.numel() for batch in self._some_batches)
        return PassCosts(self.analysis.loaded.card, self._tokens, measured, self.rounder.rounding)

    @property
    def _tokens(self) -> int:
        return sum(batch.numel() for batch in self.analysis.batches)

    def _deciding(self, budget: PassBudget) -> set[Entry]:
        """Measure the entries that decide most for their price; returns them."""
        analysis, costs = self.analysis, self._costs
        generator = np.random.default_rng(analysis.conditions.seed)
        if not budget.take(costs.reference):
            return set()
        worth = _worth(self._known(()), estimate_fixed(analysis.loaded.card), generator)
        ranked = sorted(worth, key=lambda entry: -worth[entry] / _price(costs, entry))
        measured: set[Entry] = set()
        begun: set[int | None] = set()
        for entry in ranked:
            layer = analysis.loaded.card.tensor(entry[0]).layer
            control = 0.0 if layer in begun else costs.replayed(entry[0])
            if budget.take(_price(costs, entry) + control):
                measured.add(entry)
                begun.add(layer)
        if measured:
            self.say(f"measuring {len(measured)} losses that plans depend on, on {costs.measured:,} tokens")
            part = replace(analysis, batches=self._some_batches)
            measure(part, measured, workers=self.workers, progress=self.progress)
        return measured

    def _known(self, measured: Collection[Entry]) -> SensitivityTable:
        """The table as far as it is known."""
        rows, _ = blend(self.analysis, measured, width_scales(self.analysis, measured))
        return self.analysis.table("auto", rows)


def _spread(plans: Sequence[Formats], most: int) -> list[Formats]:
    """At most so many of some plans, evenly spread."""
    count = max(0, min(most, len(plans)))
    return [plans[(2 * place + 1) * len(plans) // (2 * count)] for place in range(count)]


def _worth(table: SensitivityTable, fixed: FixedBytes, generator: np.random.Generator) -> dict[Entry, float]:
    """What not knowing an entry may cost plans: their relative regrets, shared out over what they decide on."""
    worth: defaultdict[Entry, float] = defaultdict(float)
    for decided in decisions(table, fixed, generator, _DRAWS):
        for other, regret in zip(decided.others, decided.regrets, strict=True):
            differences = list(decided.differences(other))
            for entry in differences:
                worth[entry] += regret / len(differences)
    return worth


def _price(costs: PassCosts, entry: Entry) -> float:
    name, fmt, _ = entry
    return costs.rounded(name, QuantFormat.parse(fmt)) + costs.replayed(name)
