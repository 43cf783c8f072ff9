"""What plans hang on: losses drawn from their error distributions, and the plans that they lead to."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from statistics import fmean

import numpy as np

from qplan.cost.file_bytes import FixedBytes
from qplan.errors import InfeasibleError, UnsolvedError
from qplan.formats import QuantFormat
from qplan.planner.budget import parse_budgets
from qplan.planner.elbow_room import rules_within
from qplan.planner.planning import make_plan
from qplan.run.measurement import Loss
from qplan.run.plan import Plan
from qplan.run.table import SensitivityTable
from qplan.sensitivity.analysis import Entry
from qplan.settings import Memory

BUDGETS = parse_budgets(["3.5bpw, 4bpw, int4, 4.5bpw, 5bpw, 6bpw, int8, 8bpw"])
"""Budgets that plans are compared at; infeasible ones are skipped."""

NARROW_BITS = 4
"""Width below which the second-order estimate may fail."""

_NARROW_ERROR = 0.3
"""Relative standard error to assume there."""

_TIME_LIMIT_S = 5.0
"""For one plan: these are compared, not shipped, and one that is not proved best tells as much."""


@dataclass(frozen=True)
class Decided:
    """A budget's plan, and those of drawn losses."""

    plan: Plan
    others: tuple[Plan, ...]
    regrets: tuple[float, ...]
    """By how much the plan loses more than each of them, under the losses that these were made from."""
    memory: Memory
    """The memory setting that they are for."""

    @property
    def regret(self) -> float:
        """The mean."""
        return fmean(self.regrets)

    def narrow(self) -> Iterator[Entry]:
        """Formats of the plan that the second-order estimate may fail for; an embedding's are measured."""
        yield from ((name, fmt.name, self.memory) for name, fmt in self.plan.formats.items() if fmt.bits < NARROW_BITS)

    def differences(self, other: Plan) -> Iterator[Entry]:
        """Formats of linears that the plan and another decide differently about; an embedding's are all measured."""
        for ours, theirs in zip(self.plan.tensors, other.tensors, strict=True):
            if ours.format != theirs.format and not ours.is_embedding:
                yield ours.name, ours.format.name, self.memory
                yield ours.name, theirs.format.name, self.memory


def decisions(
    table: SensitivityTable, fixed: FixedBytes, generator: np.random.Generator, draws: int
) -> Iterator[Decided]:
    """Plan at each of `BUDGETS` that can be met, and as often as ``draws`` with losses drawn within their errors.

    What the solver does not find in time is left out.
    """
    plans = partial(make_plan, rules=rules_within(table), time_limit_s=_TIME_LIMIT_S, prices_logits_rule=False)
    errors = {
        (name, fmt): _relative_error(fmt, loss) for name, row in table.losses().items() for fmt, loss in row.items()
    }
    for budget in BUDGETS:
        try:
            plan = plans(table, budget, fixed)
        except (InfeasibleError, UnsolvedError):
            continue
        others, regrets = [], []
        for _ in range(draws):
            factors = {key: math.exp(error * generator.standard_normal()) for key, error in errors.items()}
            rows = (replace(m, kl_nats=m.kl_nats * factors[m.tensor, m.format]) for m in table.measurements)
            drawn = replace(table, measurements=tuple(rows))
            try:
                other, losses = plans(drawn, budget, fixed), drawn.ordered_kl(table.goal)
            except UnsolvedError:
                continue
            others.append(other)
            ours = math.fsum(losses[name][fmt.name] for name, fmt in plan.formats.items())
            regrets.append(ours / least - 1 if (least := other.solver.objective_nats) else 0.0)
        if others:
            yield Decided(plan, tuple(others), tuple(regrets), table.goal)


def _relative_error(fmt: str, loss: Loss) -> float:
    """Relative standard error of a loss; 0 if measured, since estimates are made on the same tokens."""
    if loss.source == "measured" or not loss.kl_nats:
        return 0.0
    narrow = QuantFormat.parse(fmt).bits < NARROW_BITS
    return math.hypot(loss.stderr_nats / loss.kl_nats, _NARROW_ERROR if narrow else 0.0)
