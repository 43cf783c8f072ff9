"""Chooses the plan that a user wants; limits on the loss are held on whole models, on held-out tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from qplan.choosing.choose import choose_plan
from qplan.choosing.context import Formats, PlanningContext
from qplan.choosing.repair import repair
from qplan.choosing.request import EVALUATIONS, PlanRequest
from qplan.errors import InfeasibleError
from qplan.notes import note
from qplan.planner.ceiling import Ceiling
from qplan.planner.limits import ResourceLimit
from qplan.run.folder import RunFolder
from qplan.run.plan import Plan

_ROUNDS = 5
"""Times that a plan whose whole model loses more than allowed is solved again under a lower limit."""

_MARGIN = 0.97
"""How much lower than needed the next limit is."""


@dataclass(frozen=True)
class WholeLoss:
    """What a whole model loses on held-out tokens."""

    kl_nats: float
    nll_nats: float
    """Increase of the mean negative log-likelihood over FP32's; may be negative."""
    perplexity: float
    """Increase of the perplexity."""


def choose_requested(
    context: PlanningContext, wanted: PlanRequest, run: RunFolder, *, evaluations: int = EVALUATIONS
) -> Plan:
    """The best plan within all budgets and limits, repaired by what whole models lose.

    See `choose_plan` and `repair`.

    Args:
        context: losses, and whole models to judge by; its rules are those of ``wanted``.
        wanted: budgets, limits and rules.
        run: where the device profile is.
        evaluations: whole models that a repair may measure; 0 for no repair.

    Raises:
        InputError: a pattern that matches nothing, or no device profile where one is needed.
        InfeasibleError: no plan fits; names the nearest value.
    """
    context, table = replace(context, rules=wanted.rules), context.table
    resources, minimize = wanted.limits(table, run), wanted.minimize(table, run)
    scales = [1.0, 1.0]
    tried: list[WholeLoss] = []
    for _ in range(_ROUNDS):
        limits: tuple[Ceiling | ResourceLimit, ...] = (*resources, *wanted.loss_ceilings(table, scales))
        plan = choose_plan(context, wanted.budgets, limits=limits, minimize=minimize)
        if minimize is None and evaluations:
            plan = _repaired(plan, context, limits, evaluations)
        if not wanted.budgets:
            plan = replace(plan, budget=wanted.label)
        if wanted.max_kl is None and wanted.max_ppl_increase is None:
            return plan
        loss = whole_loss(context, plan.formats)
        tried.append(loss)
        over = _over(wanted, loss, table.reference_nll_nats)
        context.say(f"held-out tokens: KL {loss.kl_nats:.3e} nats per token, perplexity {loss.perplexity:+.3f}")
        if max(over) <= 1:
            kept = note("limits-kept", nats=loss.kl_nats, memory=table.goal, perplexity_change=loss.perplexity)
            return plan.noted(kept)
        context.say("more than allowed: solving again under a lower limit")
        # a ratio of 0 is a limit that nobody asked for, or that nothing is lost of
        lower = [min(1.0, _MARGIN / ratio) if ratio else 1.0 for ratio in over]
        scales = [scale * factor for scale, factor in zip(scales, lower, strict=True)]
    least = min(tried, key=lambda loss: loss.kl_nats)
    msg = (
        f"no plan was found whose whole model keeps the loss limit on held-out tokens; the nearest has "
        f"KL {least.kl_nats:.3e} nats per token and a perplexity {least.perplexity:+.3f}. Raise the limit"
    )
    raise InfeasibleError(msg)


def _repaired(
    plan: Plan, context: PlanningContext, limits: Sequence[Ceiling | ResourceLimit], evaluations: int
) -> Plan:
    """The plan repaired, unless that makes it worse than uniform where it was not optimized."""
    better = repair(plan, context, limits=limits, evaluations=evaluations)
    found = context.uniform(plan.budget_bytes)
    if better is plan or found is None:
        return better
    name, uniform = found
    if max(context.against(better.formats, uniform).values()) > 1:
        context.say(f"the repaired plan is worse than uniform {name} in a memory setting: the first one is kept")
        return plan
    return better


def whole_loss(context: PlanningContext, formats: Formats) -> WholeLoss:
    """Measure a whole model in torch, as the table's losses were measured."""
    found = context.whole({"fp32": {}, "plan": formats})
    before, after = found["fp32"].nll_nats, found["plan"].nll_nats
    return WholeLoss(found["plan"].kl_nats, after - before, math.exp(after) - math.exp(before))


def _over(wanted: PlanRequest, loss: WholeLoss, reference_nll_nats: float) -> tuple[float, float]:
    """How many times the limits on KL and perplexity are exceeded; at most 1 where they hold."""
    kl = 0.0 if wanted.max_kl is None else loss.kl_nats / wanted.max_kl
    increase = wanted.max_ppl_increase
    nll = 0.0 if increase is None else loss.nll_nats / increase.nll_nats(reference_nll_nats)
    return kl, max(nll, 0.0)
