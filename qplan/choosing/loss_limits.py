"""Chooses the plan that a user requested. Limits on the loss are checked on whole models, on held-out tokens."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from qplan.choosing.choose import choose_plan
from qplan.choosing.context import PlanningContext
from qplan.choosing.parity import parity_notes
from qplan.choosing.repair import repair
from qplan.choosing.request import PlanRequest
from qplan.choosing.smaller import no_worse_than_smaller
from qplan.errors import InfeasibleError
from qplan.formats import Formats
from qplan.notes import note
from qplan.planner.ceiling import Ceiling
from qplan.planner.limits import ResourceLimit
from qplan.planner.metric import Metric
from qplan.run.folder import RunFolder
from qplan.run.plan import Plan
from qplan.uniform import UniformExport

_ROUNDS = 5
"""How often a plan whose whole model loses more than allowed is solved again under a lower limit."""

_MARGIN = 0.97
"""Factor on the next limit, as a margin."""


@dataclass(frozen=True)
class WholeLoss:
    """Losses of a whole model on held-out tokens."""

    kl_nats: float
    nll_nats: float
    """Increase of the mean negative log-likelihood over FP32's; may be negative."""
    perplexity: float
    """Increase of the perplexity."""


def choose_requested(
    context: PlanningContext, wanted: PlanRequest, run: RunFolder, *, evaluations: int | None = None
) -> Plan:
    """Choose the best plan within all budgets and limits, and repair it by measuring whole models.

    See `choose_plan`, `repair` and `no_worse_than_smaller`.

    Args:
        context: losses, and the means to measure whole models; its rules are replaced by those of ``wanted``.
        wanted: budgets, limits and rules.
        run: the run, which holds the device profile.
        evaluations: most whole models that the repair may measure; 0 for no repair, None for what it can afford.

    Raises:
        InputError: a pattern matches nothing, or a device profile is needed and missing.
        InfeasibleError: no plan fits; the message gives the nearest value that does.
    """
    context, table = replace(context, rules=wanted.rules), context.table
    resources, minimize = wanted.limits(table, run), wanted.minimize(table, run)
    scales = [1.0, 1.0]
    tried: list[WholeLoss] = []
    for _ in range(_ROUNDS):
        limits: tuple[Ceiling | ResourceLimit, ...] = (*resources, *wanted.loss_ceilings(table, scales))
        plan = choose_plan(context, wanted.budgets, limits=limits, minimize=minimize)
        plan = plan.noted(*parity_notes(wanted.budgets, wanted.rules, table))
        if minimize is None and evaluations != 0:
            plan = _unless_worse(plan, repair(plan, context, limits=limits, evaluations=evaluations), context)
        if minimize is None and context.rules.metric is Metric.kl:
            plan = _unless_worse(plan, no_worse_than_smaller(plan, context, run, limits), context)
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
        context.say("the loss is above its limit: solving again under a lower limit")
        # a ratio of 0 means that there is no such limit, or no such loss
        lower = [min(1.0, _MARGIN / ratio) if ratio else 1.0 for ratio in over]
        scales = [scale * factor for scale, factor in zip(scales, lower, strict=True)]
    least = min(tried, key=lambda loss: loss.kl_nats)
    msg = (
        f"no plan was found whose whole model keeps to the loss limit on held-out tokens; the nearest has "
        f"KL {least.kl_nats:.3e} nats per token, perplexity {least.perplexity:+.3f}. Raise the limit"
    )
    raise InfeasibleError(msg)


def _unless_worse(plan: Plan, better: Plan, context: PlanningContext) -> Plan:
    """The better plan, or the one before if the best uniform export beats the better one under some memory setting."""
    if better is plan or not plan.rivals:
        return better
    name, rules = plan.rivals[0].name, context.rules
    export = UniformExport.parse(name)
    uniform = export.formats(context.table.model, rules.uniform_scale_bits)
    if max(context.against(better.formats, uniform, export.rounding).values()) > 1:
        context.say(f"that plan is worse than uniform {name} under a memory setting: keeping the plan before")
        return plan
    return better


def whole_loss(context: PlanningContext, formats: Formats) -> WholeLoss:
    """Measure a whole model in torch, as the table's losses were measured."""
    found = context.whole({"fp32": {}, "plan": formats}, exact=True)
    before, after = found["fp32"].nll_nats, found["plan"].nll_nats
    return WholeLoss(found["plan"].kl_nats, after - before, math.exp(after) - math.exp(before))


def _over(wanted: PlanRequest, loss: WholeLoss, reference_nll_nats: float) -> tuple[float, float]:
    """Losses relative to the limits on KL and perplexity; at most 1 if these hold, 0 without a limit."""
    kl = 0.0 if wanted.max_kl is None else loss.kl_nats / wanted.max_kl
    increase = wanted.max_ppl_increase
    nll = 0.0 if increase is None else loss.nll_nats / increase.nll_nats(reference_nll_nats)
    return kl, max(nll, 0.0)
