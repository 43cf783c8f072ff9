"""What a table alone says about a request: whether any plan can satisfy it, before a model is loaded."""

from __future__ import annotations

from dataclasses import replace

from qplan.choosing.request import PlanRequest
from qplan.cost.file_bytes import FixedBytes
from qplan.planner.ceiling import Ceiling
from qplan.planner.infeasible import infeasible
from qplan.planner.limits import ResourceLimit
from qplan.planner.planning import tightest
from qplan.planner.solver.solver import solve
from qplan.run.folder import RunFolder
from qplan.run.table import SensitivityTable


def check_feasible(request: PlanRequest, table: SensitivityTable, run: RunFolder, fixed: FixedBytes) -> None:
    """Hold the smallest plan of a table against all budgets and limits.

    Before the first export the bytes besides the tensors are an estimate: what hangs on it is let through, and decided
    when the graph is there.

    Args:
        request: budgets, limits and rules.
        table: single losses.
        run: where the device profile is.
        fixed: bytes that ship whatever the plan.

    Raises:
        InputError: a pattern that matches nothing, a metric that was not measured, or no device profile where one is
            needed.
        InfeasibleError: no plan fits; names the nearest value.
    """
    card, rules = table.model, request.rules
    problem = rules.problem(card, rules.losses(table), None)
    limits: tuple[Ceiling | ResourceLimit, ...] = (*request.limits(table, run), *request.loss_ceilings(table))
    for limit in limits:
        problem = limit.applied(problem, card)
    request.minimize(table, run)
    surely = fixed if fixed.exact else FixedBytes(0, fixed.embedding, 0, exact=False)
    smallest = solve(problem.smallest_program())
    budget = tightest(request.budgets, card, surely, rules.uniform_scale_bits)
    if smallest.picks and (budget is None or problem.picked_bytes(smallest.picks) <= budget.limit_bytes - surely.total):
        return
    budget = tightest(request.budgets, card, fixed, rules.uniform_scale_bits)
    limited = problem if budget is None else replace(problem, limit_bytes=budget.limit_bytes - fixed.total)
    raise infeasible(limited, budget, fixed.total, restricted=bool(rules.pins or rules.min_bits))
