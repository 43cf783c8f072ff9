"""Which ``dynamic_option`` a plan is made for: the one under which the best plan is predicted to lose less."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace

from qplan.choosing.request import PlanRequest
from qplan.choosing.retarget import computable
from qplan.cost.file_bytes import FixedBytes
from qplan.cost.footprint import footprint
from qplan.errors import InfeasibleError, InputError
from qplan.notes import note
from qplan.planner.ceiling import Ceiling
from qplan.planner.limits import ResourceLimit
from qplan.planner.planning import make_plan, planned_tensors, predicted_nats
from qplan.planner.rules import Rules
from qplan.run.folder import RunFolder
from qplan.run.plan import Plan
from qplan.run.table import SensitivityTable
from qplan.settings import DYNAMIC_OPTIONS, DynamicOption


@dataclass(frozen=True)
class Setting:
    """A table and a request, as one ``dynamic_option`` on the request's target has them."""

    option: DynamicOption
    table: SensitivityTable
    wanted: PlanRequest

    @property
    def known(self) -> bool:
        """Whether the losses are those of the target's arithmetic under the option, and not of the analysis's own."""
        return self.wanted.rules.computes(self.table)


def setting(table: SensitivityTable, wanted: PlanRequest, option: DynamicOption) -> Setting:
    """The setting with an option; with the analysis's own losses if the table holds no others.

    Raises:
        InputError: the engine computes none of a tensor's formats under the option.
    """
    given = computable(table) if option == 2 else table
    target = wanted.rules.target.scaling(option)
    if given.computing(target.arithmetic, option) is None:
        target = target.scaling(0)
    rules = replace(wanted.rules, target=target)
    return Setting(option, rules.seen(given), replace(wanted, rules=rules))


def as_shipped(plan: Plan, table: SensitivityTable) -> Plan:
    """The plan with its losses under the ``dynamic_option`` that it ships with, which may not be that it was made for.

    Args:
        plan: whose option was decided.
        table: that it was made from.
    """
    rules = Rules.of(plan)
    seen = rules.seen(table)
    if plan.arithmetic is None or not rules.computes(seen):
        return plan
    tensors = planned_tensors(seen, plan.formats)
    taken = footprint(table.model, plan.formats, rules.target, plan.memory)
    return replace(plan, tensors=tensors, predicted_nats=predicted_nats(tensors, seen), footprint=taken)


def with_note_on_losses(plan: Plan, table: SensitivityTable) -> Plan:
    """The plan, with a note if its losses are of another option than it ships with."""
    measured_with = table.conditions.dynamic_option
    if plan.arithmetic is not None or plan.dynamic_option == measured_with:
        return plan
    return plan.noted(note("losses-of-other-option", dynamic_option=measured_with))


def best_setting(
    table: SensitivityTable, wanted: PlanRequest, run: RunFolder, fixed: FixedBytes, option: DynamicOption | None
) -> Setting:
    """The setting under which the best plan loses least, by the sums of single losses.

    Args:
        table: losses of single tensors.
        wanted: budgets, limits and rules.
        run: may hold a device profile.
        fixed: bytes that every plan ships.
        option: the one that is asked for; None to find the better.

    Raises:
        InputError: the engine computes none of a tensor's formats under the option that was asked for.
    """
    several = settings_to_weigh(table, wanted, option)
    if len(several) == 1:
        return several[0]
    found: list[tuple[float, Setting]] = []
    for one in several:
        with suppress(InfeasibleError):
            found.append((predicted_loss(one.table, run, fixed, one.wanted), one))
    return min(found, key=lambda pair: pair[0])[1] if found else several[0]


def settings_to_weigh(
    table: SensitivityTable, wanted: PlanRequest, option: DynamicOption | None
) -> tuple[Setting, ...]:
    """The settings among which losses decide: the one that is asked for, or those that the table knows about.

    Raises:
        InputError: the engine computes none of a tensor's formats under the option that was asked for.
    """
    plain = setting(table, wanted, option or 0)
    if option is not None or table.goal == "normal" or wanted.rules.target.arithmetic == "float" or not plain.known:
        return (plain,)
    found = [plain]
    for one in DYNAMIC_OPTIONS[1:]:
        with suppress(InputError):  # no format is right under the option
            under = setting(table, wanted, one)
            found += [under] if under.known else []
    return tuple(found)


def predicted_loss(table: SensitivityTable, run: RunFolder, fixed: FixedBytes, wanted: PlanRequest) -> float:
    """What the best plan for a request is predicted to lose, before whole models are measured.

    Raises:
        InfeasibleError: there is none.
    """
    limits: tuple[Ceiling | ResourceLimit, ...] = (*wanted.limits(table, run), *wanted.loss_ceilings(table))
    minimize = wanted.minimize(table, run)
    plan = make_plan(
        table,
        wanted.budgets,
        fixed,
        rules=wanted.rules,
        ceilings=limits,
        minimize=minimize,
        prices_logits_rule=False,
    )
    return plan.predicted_nats
