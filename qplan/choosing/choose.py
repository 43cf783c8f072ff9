"""Chooses the plan that ships: the planner's, if whole models confirm what single losses predict."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from qplan.choosing.context import PlanningContext
from qplan.errors import InfeasibleError
from qplan.formats import Formats
from qplan.notes import note
from qplan.planner.budget import Budget
from qplan.planner.ceiling import Ceiling
from qplan.planner.limits import Cost, ResourceLimit
from qplan.planner.planning import make_plan
from qplan.planner.uniform import uniform_loss
from qplan.run.plan import Plan
from qplan.settings import Memory

_ROUNDS = 5
"""How often a plan that loses more than uniform is solved again under a lower ceiling."""

_MARGIN = 0.95
"""Factor on the next ceiling, as a margin: losses add up differently in the next plan."""


def choose_plan(
    context: PlanningContext,
    budgets: Budget | Sequence[Budget],
    *,
    limits: Sequence[Ceiling | ResourceLimit] = (),
    minimize: Cost | None = None,
) -> Plan:
    """Solve, then compare the plan with the uniform export within its budget, per memory setting on held-out tokens.

    Single losses do not add up exactly, and a plan made for one memory setting may be bad under the other. A plan that
    is worse than uniform under some setting is solved again with a ceiling on the loss there. If that does not help,
    uniform replaces it, unless rules, limits or missing losses rule that out: then the plan gets a note.

    Args:
        context: losses, rules, and the means to measure whole models.
        budgets: one, several that must all hold, or none.
        limits: limits on other losses, RAM and time.
        minimize: a cost to minimize before the loss.

    Raises:
        InputError: a pattern matches nothing.
        InfeasibleError: no plan fits.
    """
    table, rules = context.table, context.rules

    def solve(ceilings: Sequence[Ceiling] = ()) -> Plan:
        return make_plan(table, budgets, context.fixed, rules=rules, ceilings=(*limits, *ceilings), minimize=minimize)

    plan = solve()
    found = context.uniform(plan.budget_bytes)
    if found is None:
        return plan
    name, uniform = found
    most: dict[Memory, float] = {}
    for attempt in range(_ROUNDS):
        if plan.formats == uniform and context.rounder.rounding == "rtn":
            return plan.noted(note("uniform-within-limits", uniform=name))
        ratios = context.against(plan.formats, uniform)
        shown = ", ".join(f"memory {memory} {ratio:.2f}" for memory, ratio in ratios.items())
        context.say(f"joint loss of the plan relative to MNN's uniform {name}: {shown}")
        if max(ratios.values()) <= 1:
            return plan
        for memory, ratio in ratios.items():
            if ratio > 1:
                reached = uniform_loss(plan.formats, table.kl(memory)) or 0.0
                most[memory] = _MARGIN / ratio * min(reached, most.get(memory, reached))
        context.say(f"worse than uniform {name}: solving again under a lower ceiling ({attempt + 1} of {_ROUNDS})")
        ceilings = [Ceiling(f"loss under memory {memory}", table.kl(memory), limit) for memory, limit in most.items()]
        try:
            plan = solve(ceilings)
        except InfeasibleError:
            break  # no plan satisfies the ceiling
    kept = all(isinstance(limit, ResourceLimit) and limit.holds(table.model, uniform) for limit in limits)
    restricted = rules.restricts or not kept or minimize is not None
    if restricted or uniform_loss(uniform, table.kl(table.goal)) is None:
        return plan.noted(note("worse-than-uniform", uniform=name))
    return _uniform_instead(context, budgets, name, uniform)


def with_price_of_nearest(plan: Plan, context: PlanningContext) -> Plan:
    """The plan with a note on its loss if llmexport made it: unfolded, with integers rounded to nearest."""
    rounder, memory = context.rounder, context.table.goal
    folded = context.nearest.loaded is not rounder.loaded
    if rounder.rounding == "rtn" and not folded:
        return plan
    ours, theirs = context.nearest_nats(plan.formats)
    if not ours:
        return plan
    feedback = rounder.rounding != "rtn"
    price = {"times": theirs / ours, "nats": theirs}
    if folded and feedback:
        return plan.noted(note("nearest-for-both", **price, memory=memory))
    return plan.noted(note("nearest-for-folded" if folded else "nearest-for-feedback", **price, memory=memory))


def _uniform_instead(context: PlanningContext, budgets: Budget | Sequence[Budget], name: str, uniform: Formats) -> Plan:
    rules, fixed = context.rules, context.fixed
    if rules.uniform_fixed is not None and rules.uniform_fixed.total < fixed.total:
        msg = (
            f"no mix of the folded weights is better than uniform {name} on held-out tokens, and uniform {name} of the "
            f"folded weights is {fixed.total - rules.uniform_fixed.total:,} bytes larger than of the unfolded ones; "
            "analyze with --fold off --restart"
        )
        raise InfeasibleError(msg)
    plan = make_plan(context.table, budgets, fixed, rules=replace(rules, pins=uniform))
    return plan.noted(note("uniform-is-best", uniform=name))
