"""From a sensitivity table and a budget to a plan."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from qplan.card import ModelCard
from qplan.cost.file_bytes import FixedBytes, file_bytes, record_bytes
from qplan.cost.footprint import footprint
from qplan.errors import UnsolvedError
from qplan.formats import FP16, QuantFormat
from qplan.notes import Note, note
from qplan.planner.budget import Budget, ResolvedBudget
from qplan.planner.ceiling import Ceiling
from qplan.planner.elbow_room import is_cramped, narrower_bits
from qplan.planner.infeasible import infeasible
from qplan.planner.limits import Cost, ResourceLimit
from qplan.planner.problem import ROUTER_FORMAT, Problem
from qplan.planner.rules import Rules
from qplan.planner.solver.program import Solution, Status
from qplan.planner.solver.solver import TIME_LIMIT_S, solve
from qplan.planner.uniform import uniform_loss
from qplan.planner.widen import widened
from qplan.run.plan import (
    LogitsRule,
    Plan,
    PlannedLimit,
    PlannedTensor,
    SolverReport,
    UniformPoint,
)
from qplan.run.table import SensitivityTable
from qplan.tensors import Role
from qplan.uniform import UNIFORM_NAMES, uniform_formats

_UNLIMITED = frozenset({"budget-does-not-bind", "limits-do-not-bind"})

COMPARED_BITS = (4, 8, FP16.bits)
"""Widths of the uniform exports that every plan is compared with."""


def make_plan(
    table: SensitivityTable,
    budgets: Budget | Sequence[Budget],
    fixed: FixedBytes,
    *,
    rules: Rules | None = None,
    ceilings: Sequence[Ceiling | ResourceLimit] = (),
    minimize: Cost | None = None,
    time_limit_s: float = TIME_LIMIT_S,
    prices_logits_rule: bool = True,
    sensitivity_sha256: str | None = None,
) -> Plan:
    """Make the plan with the least predicted loss whose files are no larger than the budget.

    Args:
        table: measured losses.
        budgets: one, several (the tightest counts), or none for no limit on bytes.
        fixed: bytes that every plan ships.
        rules: what else must hold, and what is minimized; None for the default rules.
        ceilings: limits on other losses, on RAM, on time.
        minimize: a cost to minimize before the loss, e.g. bytes; among the cheapest plans the loss is then minimized.
        time_limit_s: for each of two solves; the solver report of a plan says if it was not proved optimal in time.
        prices_logits_rule: whether to solve once more without the logits rule; False leaves its price at 0, for plans
            of which only formats, sizes and losses are looked at.
        sensitivity_sha256: hash of the analysis that the table was derived from; None for the table's own.

    Raises:
        InputError: a pattern matches nothing, or a tensor has no measured format that is allowed.
        InfeasibleError: no plan satisfies the limits; the message gives the smallest that does.
        UnsolvedError: no plan was found in time.
    """
    rules = rules or Rules()
    table, sensitivity_sha256 = rules.seen(table), sensitivity_sha256 or table.sha256
    card, losses = table.model, rules.losses(table)
    uniform_fixed, scale_bits = rules.uniform_fixed or fixed, rules.uniform_scale_bits
    budget = tightest(budgets, card, uniform_fixed, scale_bits)
    problem = rules.problem(card, losses, None if budget is None else budget.limit_bytes - fixed.total)
    for ceiling in ceilings:
        problem = ceiling.applied(problem, card)
    compared = dict.fromkeys((*COMPARED_BITS, *([] if budget is None or budget.bits is None else [budget.bits])))
    uniform = {UNIFORM_NAMES[bits]: uniform_formats(card, bits, scale_bits) for bits in compared}
    known = [
        picks for formats in uniform.values() if (picks := picks_of(problem, formats, card, forced=True)) is not None
    ]
    cheapest = None
    if minimize is not None:
        cheapest = solve(problem.cheapest_program(minimize.choice(card)), known=known, time_limit_s=time_limit_s)
        if cheapest.picks:
            problem = problem.limited(
                f"least {minimize.name}", minimize.unit, round(cheapest.objective), minimize.choice(card)
            )
            known = [cheapest.picks]
    unlimited = None if minimize is not None else unlimited_picks(problem)
    if unlimited is not None:
        known = [*known, unlimited]
    solution = solve(problem.program(), known=known, time_limit_s=time_limit_s)
    if solution.status is Status.INFEASIBLE:
        raise infeasible(problem, budget, fixed.total, restricted=bool(rules.pins or rules.min_bits))
    if not solution.picks:
        asked = "the limits" if budget is None else budget.text
        msg = f"no plan within {asked} was found in {time_limit_s:g} s; raise the budget or the time limit"
        raise UnsolvedError(msg)
    formats = member_formats(problem, unlimited or widened(problem, solution.picks), card)
    files = file_bytes(card, formats, fixed)
    # uniform exports are rounded to nearest, so losses of better integers do not apply to them
    nearest = table.ordered_kl(table.goal) if table.conditions.rounding == "rtn" else {}
    tensors = planned_tensors(table, formats)
    return Plan(
        model=card.source,
        model_sha256=card.sha256,
        sensitivity_sha256=sensitivity_sha256,
        memory=table.conditions.memory,
        budget="none" if budget is None else budget.text,
        budget_bytes=files.total if budget is None else budget.limit_bytes,
        tensors=tensors,
        predicted_nats=predicted_nats(tensors, table),
        files=files,
        solver=_report(solution, cheapest),
        logits=_logits_rule(problem, solution, time_limit_s, priced=prices_logits_rule),
        uniform=tuple(
            UniformPoint(
                name,
                file_bytes(card, f, uniform_fixed).total,
                _predicted_uniform(f, nearest, table),
                footprint(card, f, rules.target.scaling(0), table.goal),
            )
            for name, f in uniform.items()
        ),
        notes=(
            *_router_notes(card, formats),
            *_notes(card, budget, fixed, solution, uniform),
            *_notes_on_room(problem, budget, rules),
            *_notes_on_limits(budget, ceilings, unlimited=unlimited is not None),
        ),
        given=rules.given,
        limits=planned_limits(ceilings, card, formats),
        objective="loss" if minimize is None else minimize.name,
        target=rules.target.name,
        precision=rules.target.precision,
        dynamic_option=rules.target.dynamic_option,
        arithmetic=rules.target.arithmetic if rules.computes(table) else None,
        parity=rules.parity,
        footprint=footprint(card, formats, rules.target, table.goal),
    )


def unlimited_picks(problem: Problem) -> tuple[int, ...] | None:
    """The best format of every group as if nothing were limited, if that keeps to all limits; None if it does not."""
    free = replace(problem, limit_bytes=None, resources=())
    found = solve(free.program())
    picks = widened(free, found.picks) if found.picks else ()
    return picks if picks and problem.program().holds(picks) else None


def is_unlimited(plan: Plan) -> bool:
    """Whether a plan has the best format of every tensor, because nothing that is limited keeps it from them."""
    return any(known.code in _UNLIMITED for known in plan.notes)


def tightest(
    budgets: Budget | Sequence[Budget], card: ModelCard, fixed: FixedBytes, scale_bits: int = 16
) -> ResolvedBudget | None:
    """The smallest of several budgets in bytes; None if there are none."""
    several = [budgets] if isinstance(budgets, Budget) else budgets
    found = [budget.resolve(card, fixed, scale_bits) for budget in several]
    return min(found, key=lambda budget: budget.limit_bytes, default=None)


def planned_limits(
    limits: Sequence[Ceiling | ResourceLimit], card: ModelCard, formats: Mapping[str, QuantFormat]
) -> tuple[PlannedLimit, ...]:
    """The limits as a plan records them, with what it uses of each."""
    return tuple(
        PlannedLimit(limit.name, limit.limit, limit.cost.total(card, formats), limit.cost.unit, limit.of)
        if isinstance(limit, ResourceLimit)
        else PlannedLimit(limit.name, limit.limit_nats, limit.total_nats(formats), "nats")
        for limit in limits
    )


def picks_of(
    problem: Problem, formats: Mapping[str, QuantFormat], card: ModelCard, *, forced: bool = False
) -> tuple[int, ...] | None:
    """The picks that give every tensor its format; None if a format is not among the choices.

    Args:
        problem: the problem with its choices.
        formats: by tensor name.
        card: the model.
        forced: whether a group with a single choice takes that choice even if the format differs.
    """
    picks = []
    for group in problem.groups:
        specs = [card.tensor(name) for name in group.members]
        fitting = [
            index
            for index, choice in enumerate(group.choices)
            if all(choice.format.resolve(spec.in_features) == formats[spec.name] for spec in specs)
        ]
        if not fitting and not (forced and len(group.choices) == 1):
            return None
        picks.append(fitting[0] if fitting else 0)
    return tuple(picks)


def member_formats(problem: Problem, picks: Sequence[int], card: ModelCard) -> dict[str, QuantFormat]:
    """Format by tensor name, resolved for each tensor's width."""
    by_group = problem.picked_formats(picks)
    return {
        name: by_group[group.name].resolve(card.tensor(name).in_features)
        for group in problem.groups
        for name in group.members
    }


def planned_tensors(table: SensitivityTable, formats: Mapping[str, QuantFormat]) -> tuple[PlannedTensor, ...]:
    """The plan's rows, in order of execution."""
    losses = table.ordered_kl(table.goal)
    return tuple(
        PlannedTensor(
            name=spec.name,
            op_name=spec.op_name,
            layer=spec.layer,
            kind=spec.kind,
            weights=spec.weights,
            format=formats[spec.name],
            bytes=record_bytes(spec, formats[spec.name]),
            loss_nats=losses[spec.name][formats[spec.name].name],
        )
        for spec in table.model.planned
    )


def predicted_nats(tensors: Sequence[PlannedTensor], table: SensitivityTable) -> float:
    """The predicted joint loss of a plan: the sum of single losses, corrected as measured plans suggest.

    See `qplan.run.additivity`.
    """
    return table.predict_joint(math.fsum(tensor.loss_nats for tensor in tensors))


def _predicted_uniform(
    formats: Mapping[str, QuantFormat], losses: Mapping[str, Mapping[str, float]], table: SensitivityTable
) -> float | None:
    total = uniform_loss(formats, losses)
    return None if total is None else table.predict_joint(total)


def _report(solution: Solution, cheapest: Solution | None) -> SolverReport:
    """What was proved: the weaker proof if there were two solves."""
    first = solution if cheapest is None or cheapest.status is Status.OPTIMAL else cheapest
    return SolverReport(
        status=first.status.value,
        objective_nats=solution.objective,
        bound_nats=solution.bound,
        gap=max(solution.gap, first.gap),
        choices=solution.choices,
        seconds=solution.seconds + (0.0 if cheapest is None else cheapest.seconds),
    )


def _logits_rule(problem: Problem, solution: Solution, time_limit_s: float, *, priced: bool) -> LogitsRule:
    """What the logits rule costs, found by solving again without it; the head keeps its legal formats."""
    free = solution
    if priced:
        free = solve(replace(problem, logits_bits=0).program(), known=[solution.picks], time_limit_s=time_limit_s)
    heads = [i for i, group in enumerate(problem.groups) if group.is_head]
    without = ", ".join(problem.groups[i].choices[free.picks[i]].format.name for i in heads)
    price = max(0.0, solution.objective - free.objective)
    if math.isclose(solution.objective, free.objective, rel_tol=1e-12):
        price = 0.0
    return LogitsRule(problem.logits_bits, problem.logits_bits > 0 and bool(heads), price, without)


def _router_notes(card: ModelCard, formats: Mapping[str, QuantFormat]) -> Iterator[Note]:
    """Notes on how routers are stored."""
    routers = [spec for spec in card.tensors if spec.role is Role.ROUTER]
    if not routers:
        return
    first = routers[0].name.split(".", 3)[-1]
    if all(formats[spec.name] == ROUTER_FORMAT for spec in routers):
        yield note("routers-by-rule", format=ROUTER_FORMAT.name, count=len(routers), name=first)
    else:
        rounded = sum(formats[spec.name] != ROUTER_FORMAT for spec in routers)
        yield note("routers-rounded", rounded=rounded, count=len(routers))


def _notes(
    card: ModelCard,
    budget: ResolvedBudget | None,
    fixed: FixedBytes,
    solution: Solution,
    uniform: Mapping[str, Mapping[str, QuantFormat]],
) -> Iterator[Note]:
    if solution.status is Status.TIME_LIMIT:
        yield note("time-limit", gap=solution.gap)
    if not fixed.exact:
        yield note("graph-estimated")
    odd = sorted(
        {
            spec.in_features
            for formats in uniform.values()
            for spec in card.tensors
            if not formats[spec.name].is_float and formats[spec.name].block != 64
        }
    )
    if odd:
        yield note("rows-not-of-64", row_weights=odd)
    if budget is not None and budget.limit_bytes > max(
        file_bytes(card, formats, fixed).total for formats in uniform.values()
    ):
        yield note("budget-above-fp16")


def _notes_on_limits(
    budget: ResolvedBudget | None, limits: Sequence[Ceiling | ResourceLimit], *, unlimited: bool
) -> Iterator[Note]:
    """Say if nothing that is limited keeps the plan from the best format of every tensor."""
    if unlimited and budget is not None:
        yield note("budget-does-not-bind", budget=budget.text)
    elif unlimited and limits:
        yield note("limits-do-not-bind")


def _notes_on_room(problem: Problem, budget: ResolvedBudget | None, rules: Rules) -> Iterator[Note]:
    """Say if the formats that were measured leave nothing to plan."""
    bits = narrower_bits(problem)
    if budget is not None and bits is not None and is_cramped(problem) and not (rules.pins or rules.min_bits):
        yield note("no-choice-left", budget=budget.text, narrower=f"int{bits}")
