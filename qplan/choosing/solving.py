"""Solves plans from a run's table on the spot, as `qplan emit` does before it measures whole models."""

from __future__ import annotations

from qplan.choosing.budget_plan import within_uniform
from qplan.choosing.parity import parity_notes
from qplan.choosing.request import PlanRequest
from qplan.cost.file_bytes import FixedBytes
from qplan.planner.ceiling import Ceiling
from qplan.planner.limits import ResourceLimit
from qplan.planner.planning import make_plan
from qplan.planner.rules import Rules
from qplan.planner.solver.solver import TIME_LIMIT_S
from qplan.run.folder import RunFolder
from qplan.run.plan import Plan
from qplan.run.table import SensitivityTable

_ABOUT_CONTEXT = ("context-limited", "setting-beyond-context", "setting-unmeasured")
"""Notes of a table that a reader of the plan must know too."""

_ABOUT_HALF = ("half-overflows", "half-loses-tokens")
"""The same where the target computes in fp16."""


def solved(
    home: RunFolder,
    table: SensitivityTable,
    fixed: FixedBytes,
    wanted: PlanRequest,
    *,
    unfolded: FixedBytes | None,
    time_limit_s: float = TIME_LIMIT_S,
    prices_logits_rule: bool = True,
    sensitivity_sha256: str | None = None,
) -> Plan:
    """The best plan under a table's memory setting.

    Budgets such as ``int8`` mean the bytes of the unfolded uniform export, as for `qplan emit`, and those of the folded
    one where nothing fits.

    Args:
        home: may hold a device profile.
        table: losses of single tensors.
        fixed: bytes that every plan ships.
        wanted: budgets, limits and rules.
        unfolded: fixed bytes of the model before folding; None if it was not exported.
        time_limit_s: for each of two solves.
        prices_logits_rule: as for `qplan.planner.planning.make_plan`.
        sensitivity_sha256: likewise.

    Raises:
        InputError: a pattern that matches nothing, or no device profile where one is needed.
        InfeasibleError: no plan fits; names the nearest value.
    """
    table = wanted.rules.seen(table)
    limits: list[Ceiling | ResourceLimit] = [*wanted.limits(table, home), *wanted.loss_ceilings(table)]
    minimize = wanted.minimize(table, home)

    def solve(rules: Rules) -> Plan:
        plan = make_plan(
            table,
            wanted.budgets,
            fixed,
            rules=rules,
            ceilings=limits,
            minimize=minimize,
            time_limit_s=time_limit_s,
            prices_logits_rule=prices_logits_rule,
            sensitivity_sha256=sensitivity_sha256,
        )
        return plan.noted(*parity_notes(wanted.budgets, rules, table))

    return within_uniform(solve, wanted.rules, fixed, unfolded)


def with_notes_of(plan: Plan, table: SensitivityTable, rules: Rules) -> Plan:
    """The plan with what is known of its model and matters where it is to run.

    Args:
        plan: made from the table.
        table: with notes of the analysis.
        rules: whose target is meant.
    """
    told = _ABOUT_CONTEXT + (_ABOUT_HALF if rules.target.arithmetic == "arm-fp16" else ())
    return plan.noted(*(known for known in table.notes if known.code in told and known not in plan.notes))
