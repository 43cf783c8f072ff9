"""Checks from the table alone, before a model is loaded, whether any plan can satisfy a request."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from qplan.card import ModelCard
from qplan.choosing.request import PlanRequest
from qplan.cost.file_bytes import FixedBytes
from qplan.formats import QuantFormat
from qplan.planner.ceiling import Ceiling
from qplan.planner.infeasible import infeasible
from qplan.planner.limits import ResourceLimit
from qplan.planner.planning import tightest
from qplan.planner.problem import Problem
from qplan.planner.solver.solver import solve
from qplan.run.folder import RunFolder
from qplan.run.table import SensitivityTable


def check_feasible(request: PlanRequest, table: SensitivityTable, run: RunFolder, fixed: FixedBytes) -> None:
    """Check the smallest plan of a table against all budgets and limits.

    Before the first export, bytes besides the tensors are an estimate. Requests whose feasibility depends on it pass
    here and are decided once the graph is exported.

    Args:
        request: budgets, limits and rules.
        table: single losses.
        run: the run, which holds the device profile.
        fixed: bytes that every plan ships.

    Raises:
        InputError: a pattern matches nothing, the metric was not measured, or a device profile is needed and missing.
        InfeasibleError: no plan fits; the message gives the nearest value that does.
    """
    card, rules = table.model, request.rules
    problem = rules.problem(card, rules.losses(table), None)
    limits: tuple[Ceiling | ResourceLimit, ...] = (*request.limits(table, run), *request.loss_ceilings(table))
    for limit in limits:
        problem = limit.applied(problem, card)
    request.minimize(table, run)
    _check_bytes(request, problem, card, fixed)


def check_smallest(
    request: PlanRequest, card: ModelCard, menu: Mapping[str, Sequence[QuantFormat]], fixed: FixedBytes
) -> None:
    """Check the smallest plan of a model against the budgets before anything is known of its losses.

    Args:
        request: budgets and rules.
        card: the model.
        menu: the formats that will be measured, by tensor name.
        fixed: bytes that every plan ships.

    Raises:
        InputError: a tensor has no format that the target computes.
        InfeasibleError: no plan fits the budgets; the message gives the nearest that does.
    """
    legal = request.rules.target.legal
    unknown = {spec.name: {fmt.name: 0.0 for fmt in menu[spec.name] if legal(spec, fmt)} for spec in card.planned}
    _check_bytes(request, request.rules.problem(card, unknown, None), card, fixed)


def _check_bytes(request: PlanRequest, problem: Problem, card: ModelCard, fixed: FixedBytes) -> None:
    rules = request.rules
    certain = fixed if fixed.exact else FixedBytes(0, fixed.embedding, 0, exact=False)
    smallest = solve(problem.smallest_program())
    budget = tightest(request.budgets, card, certain, rules.uniform_scale_bits)
    if smallest.picks and (
        budget is None or problem.picked_bytes(smallest.picks) <= budget.limit_bytes - certain.total
    ):
        return
    budget = tightest(request.budgets, card, fixed, rules.uniform_scale_bits)
    limited = problem if budget is None else replace(problem, limit_bytes=budget.limit_bytes - fixed.total)
    raise infeasible(limited, budget, fixed.total, restricted=bool(rules.pins or rules.min_bits))
