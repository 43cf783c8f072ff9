"""Solves plans from a run's table on the spot, as `qplan emit` does before it measures whole models."""

from __future__ import annotations

from collections.abc import Sequence

from qplan.choosing.budget_plan import within_uniform
from qplan.choosing.parity import parity_notes
from qplan.choosing.request import PlanRequest
from qplan.choosing.sizes import unfolded_fixed_bytes
from qplan.cost.file_bytes import FixedBytes
from qplan.planner.budget import Budget, parse_budgets
from qplan.planner.ceiling import Ceiling
from qplan.planner.limits import ResourceLimit
from qplan.planner.planning import make_plan
from qplan.planner.rules import Rules
from qplan.run.folder import RunFolder
from qplan.run.plan import Plan
from qplan.run.table import SensitivityTable
from qplan.tensors import short_name

ANY_NATS = 1e3
"""A limit on the loss that every plan keeps, to ask for the smallest plan of all."""


def budgets_of(budget: str | int | Sequence[str] | None) -> tuple[Budget, ...]:
    """Budgets from what `qplan.explore.run.Run.solve` takes; whole numbers are bytes.

    Raises:
        InputError: one is not understood.
    """
    if budget is None:
        return ()
    if isinstance(budget, int):
        return (Budget.of_bytes(budget),)
    return parse_budgets([budget] if isinstance(budget, str) else budget)


def name_of(wanted: PlanRequest, memory: str | None) -> str:
    """A name to show for a plan: its budgets and limits, and the rules that are not the defaults."""
    rules, usual = wanted.rules, Rules()
    parts = [wanted.label or "any size"]
    parts += [f"memory {memory}"] if memory is not None else []
    if rules.logits_bits != usual.logits_bits:
        parts.append(f"head at least {rules.logits_bits} bits" if rules.logits_bits else "no logits rule")
    parts += [f"{short_name(pattern)} = {fmt}" for pattern, fmt in rules.pins.items()]
    parts += [f"{short_name(pattern)} at least {bits} bits" for pattern, bits in rules.min_bits.items()]
    parts += [f"groups {' '.join(rules.group_patterns)}"] if rules.group_patterns else []
    parts += ["fused groups"] if rules.fused else []
    parts += [f"metric {rules.metric.value}"] if rules.metric is not usual.metric else []
    parts += [f"parity {rules.parity}"] if rules.parity != usual.parity else []
    return ", ".join(parts)


def solved(home: RunFolder, table: SensitivityTable, fixed: FixedBytes, wanted: PlanRequest) -> Plan:
    """The best plan under a table's memory setting.

    Budgets such as ``int8`` mean the bytes of the unfolded uniform export, as for `qplan emit`, and those of the folded
    one where nothing fits.

    Raises:
        InputError: a pattern that matches nothing, or no device profile where one is needed.
        InfeasibleError: no plan fits; names the nearest value.
    """
    table = wanted.rules.seen(table)
    limits: list[Ceiling | ResourceLimit] = [*wanted.limits(table, home), *wanted.loss_ceilings(table)]
    minimize = wanted.minimize(table, home)

    def solve(rules: Rules) -> Plan:
        plan = make_plan(table, wanted.budgets, fixed, rules=rules, ceilings=limits, minimize=minimize)
        return plan.noted(*parity_notes(wanted.budgets, rules, table))

    return within_uniform(solve, wanted.rules, fixed, unfolded_fixed_bytes(home, table.model))
