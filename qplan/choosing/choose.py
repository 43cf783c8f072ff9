"""Chooses the plan that ships: the planner's, if whole models confirm what single losses predict."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from qplan.choosing.context import PlanningContext
from qplan.choosing.rivals import Measured, best_rivals
from qplan.errors import InfeasibleError
from qplan.notes import note
from qplan.planner.budget import Budget
from qplan.planner.ceiling import Ceiling
from qplan.planner.limits import Cost, ResourceLimit
from qplan.planner.planning import make_plan
from qplan.planner.uniform import uniform_loss
from qplan.run.plan import Plan
from qplan.settings import Memory
from qplan.tensors import Role
from qplan.uniform import NEAREST

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
    """Solve, then compare the plan with the best uniform export within its limits, per memory setting, on whole models.

    Single losses do not add up exactly, and a plan made for one memory setting may be bad under the other. A plan that
    is worse than the export under some setting is solved again with a ceiling on the loss there. If that does not help,
    the export's formats replace it, unless rules, limits or missing losses rule that out: then the plan gets a note.

    Args:
        context: losses, rules, and the means to measure whole models.
        budgets: one, several that must all hold, or none.
        limits: limits on other losses, RAM and time.
        minimize: a cost to minimize before the loss.

    Raises:
        InputError: a pattern matches nothing.
        InfeasibleError: no plan fits.
    """

    def solve(ceilings: Sequence[Ceiling] = ()) -> Plan:
        return make_plan(
            context.table,
            budgets,
            context.fixed,
            rules=context.rules,
            ceilings=(*limits, *ceilings),
            minimize=minimize,
        )

    plan = solve()
    rivals = best_rivals(context, plan.budget_bytes, limits)
    if not rivals:
        return plan
    shown = ", ".join(f"{rival.export.name} {rival.nats:.3e}" for rival in rivals)
    context.say(f"the best uniform exports within the same limits lose, in nats per token: {shown}")
    better = _solved_lower(context, plan, solve, rivals[0])
    if better is None:
        # rivals keep to the limits on RAM and times
        others = any(not isinstance(limit, ResourceLimit) for limit in limits)
        restricted = context.rules.restricts or others or minimize is not None
        better = _uniform_instead(context, budgets, plan, rivals, limits, restricted=restricted)
    return replace(better, rivals=tuple(rival.recorded for rival in rivals))


def _solved_lower(
    context: PlanningContext, plan: Plan, solve: Callable[[Sequence[Ceiling]], Plan], rival: Measured
) -> Plan | None:
    """The plan, solved again under ceilings while it is worse than a uniform export; None if it stays so."""
    table, name = context.table, rival.export.name
    most: dict[Memory, float] = {}
    for attempt in range(_ROUNDS):
        if plan.formats == rival.formats and context.rounder.rounding == rival.export.rounding:
            return plan.noted(note("uniform-within-limits", uniform=name))
        ratios = context.against(plan.formats, rival.formats, rival.export.rounding)
        shown = ", ".join(f"memory {memory} {ratio:.2f}" for memory, ratio in ratios.items())
        context.say(f"joint loss of the plan relative to uniform {name}: {shown}")
        if max(ratios.values()) <= 1:
            return plan
        for memory, ratio in ratios.items():
            if ratio > 1:
                reached = uniform_loss(plan.formats, table.ordered_kl(memory)) or 0.0
                most[memory] = _MARGIN / ratio * min(reached, most.get(memory, reached))
        context.say(f"worse than uniform {name}: solving again under a lower ceiling ({attempt + 1} of {_ROUNDS})")
        losses = {memory: table.ordered_kl(memory) for memory in most}
        ceilings = [Ceiling(f"loss under memory {m}", losses[m], limit) for m, limit in most.items()]
        try:
            plan = solve(ceilings)
        except InfeasibleError:
            break  # no plan satisfies the ceiling
    return None


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


def _uniform_instead(
    context: PlanningContext,
    budgets: Budget | Sequence[Budget],
    plan: Plan,
    rivals: Sequence[Measured],
    limits: Sequence[Ceiling | ResourceLimit],
    *,
    restricted: bool,
) -> Plan:
    """The plan with the formats of the best uniform export whose losses are known, if it loses less with those."""
    rules, fixed, table = context.rules, context.fixed, context.table
    losses = rules.losses(table)
    known = next((rival for rival in rivals if uniform_loss(rival.formats, losses) is not None), None)
    if restricted or known is None:
        return plan.noted(note("worse-than-uniform", uniform=rivals[0].export.name))
    name = known.export.name
    if rules.uniform_fixed is not None and rules.uniform_fixed.total < fixed.total:
        msg = (
            f"no mix of the folded weights is better than uniform {name} on held-out tokens, and uniform {name} of the "
            f"folded weights is {fixed.total - rules.uniform_fixed.total:,} bytes larger than of the unfolded ones; "
            "analyze with --fold off --restart"
        )
        raise InfeasibleError(msg)
    routers = {spec.name for spec in table.model.tensors if spec.role is Role.ROUTER}
    pins = {tensor: fmt for tensor, fmt in known.formats.items() if tensor not in routers}
    try:
        uniform = make_plan(table, budgets, fixed, rules=replace(rules, pins=pins), ceilings=limits)
    except InfeasibleError:  # routers keep fp16, and take more than the export's
        return plan.noted(note("worse-than-uniform", uniform=name))
    # its integers are the plan's own, and the export's may be better ones
    losses_of = context.whole({"plan": plan.formats, "uniform": uniform.formats})
    if losses_of["plan"].kl_nats <= losses_of["uniform"].kl_nats:
        return plan.noted(note("worse-than-uniform", uniform=name))
    return uniform.noted(note("uniform-is-best", uniform=replace(known.export, rounding=NEAREST).name))
