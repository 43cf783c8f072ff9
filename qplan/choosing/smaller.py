"""A plan never loses more than one of the same run that is smaller."""

from __future__ import annotations

from collections.abc import Sequence

from qplan.choosing.context import EVEN, PlanningContext
from qplan.choosing.repair import with_formats
from qplan.errors import DamagedArtifactError, QplanError
from qplan.notes import note
from qplan.planner.ceiling import Ceiling
from qplan.planner.limits import ResourceLimit
from qplan.planner.planning import is_unlimited, picks_of
from qplan.run.damage import tell_damaged
from qplan.run.folder import RunFolder
from qplan.run.plan import Plan
from qplan.run.safetensors_file import ALL
from qplan.sensitivity.paired import change_of
from qplan.settings import NOTHING_NATS

_MOST = 3
"""Smaller plans that are measured: those with the least predicted losses."""


def no_worse_than_smaller(
    plan: Plan, context: PlanningContext, run: RunFolder, limits: Sequence[Ceiling | ResourceLimit] = ()
) -> Plan:
    """The plan, or one with the formats of a plan of a smaller budget that loses less on the same held-out tokens.

    Sums of single losses do not foresee everything, and repairs of two budgets try other moves. Plans that lose more
    beyond doubt on half of the rows are measured no further.

    Args:
        plan: the plan of this budget.
        context: its rules, and the means to measure whole models.
        run: holds the other plans.
        limits: that the other's formats must keep to as well.
    """
    if is_unlimited(plan):
        return plan
    others = _smaller(plan, context, run, limits)
    own = context.whole({"": plan.formats}, rows=EVEN)[""] if others else None
    if own is None or own.kl_nats < NOTHING_NATS:
        return plan
    formats = {name: other.formats for name, other in others.items()}
    found = context.whole(formats, rows=EVEN)
    seq_len = context.heldout.shape[1]
    near = {name: formats[name] for name, one in found.items() if not change_of(one, own, seq_len).is_fall}
    if not near:
        return plan
    nats = {name: one.kl_nats for name, one in context.whole({"": plan.formats} | near, rows=ALL).items()}
    best = min(nats, key=lambda name: nats[name])
    if nats[best] >= nats[""]:
        return plan
    share = nats[best] / nats[""]
    context.say(f"the plan {best} of this run is smaller and loses {share:.3f} times as much: its formats are taken")
    return with_formats(plan, context, near[best], limits).noted(note("smaller-plan-taken", plan=best, share=share))


def _smaller(
    plan: Plan, context: PlanningContext, run: RunFolder, limits: Sequence[Ceiling | ResourceLimit]
) -> dict[str, Plan]:
    """Plans of smaller budgets, by the names of their folders, whose formats the rules and limits allow."""
    table, rules = context.table, context.rules
    problem = rules.problem(table.model, rules.losses(table), plan.budget_bytes - context.fixed.total)
    for limit in limits:
        problem = limit.applied(problem, table.model)
    program, found = problem.program(), dict[str, Plan]()
    for folder in run.plans:
        try:
            other = Plan.read(folder.plan)
        except DamagedArtifactError as error:
            tell_damaged(f"left out: {error}")
            continue
        except QplanError:  # of a newer qplan: this plan does not depend on it
            continue
        same = (other.model_sha256, other.memory) == (plan.model_sha256, plan.memory)
        if not same or other.budget_bytes >= plan.budget_bytes or other.formats == plan.formats:
            continue
        picks = picks_of(problem, other.formats, table.model) if other.formats.keys() == plan.formats.keys() else None
        if picks is not None and program.holds(picks):
            found[folder.folder.name] = other
    best = sorted(found, key=lambda name: found[name].predicted_nats)[:_MOST]
    return {name: found[name] for name in best}
