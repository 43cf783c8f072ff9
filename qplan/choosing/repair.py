"""Improves a plan by measuring whole models: promotes and demotes tensors within the limits while the loss falls.

Single losses do not add up exactly, so the plan with the least sum need not be the best. Each round measures moves
around it that nearly paid off, one at a time, on the whole model. The solver combines them within all limits, and the
combination is measured and kept if it loses less. Half of the held-out rows choose moves, the other half must confirm.

Noise moves nothing: a change counts as the largest that its error allows, and the plan changes only if the loss falls
beyond doubt on both halves. Models are compared token by token.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from qplan.choosing.context import EVEN, ODD, PlanningContext
from qplan.choosing.request import EVALUATIONS, REPAIR_PASSES
from qplan.cost.emit import REPAIRING
from qplan.cost.file_bytes import file_bytes
from qplan.formats import Formats
from qplan.notes import note
from qplan.planner.ceiling import Ceiling
from qplan.planner.limits import ResourceLimit
from qplan.planner.metric import Metric
from qplan.planner.moves import combine, nearest_moves
from qplan.planner.planning import (
    is_unlimited,
    member_formats,
    picks_of,
    planned_limits,
    planned_tensors,
    predicted_nats,
)
from qplan.run.plan import Plan
from qplan.sensitivity.paired import change_of

_MOVES = 15
"""Most single moves that one round measures."""
_LEAST = 3
"""Fewest whole models that a repair can do anything with: two moves and the plan."""
_FORWARDS = 2
"""Passes forwards that take as long as one forwards and backwards."""
_SHARE = 0.6
"""Of a forward pass, what a plan takes that differs in one tensor from another: nothing before that, and the head."""
REPAIRED = "repaired"
"""Solver status of a plan that repair has changed."""


def repair(
    plan: Plan,
    context: PlanningContext,
    *,
    limits: Sequence[Ceiling | ResourceLimit] = (),
    evaluations: int | None = None,
) -> Plan:
    """Improve a plan within its budget and limits.

    Args:
        plan: the plan with the least sum of single losses.
        context: these losses, the rules, and at least two held-out rows.
        limits: limits on other losses, RAM and time.
        evaluations: most whole models to measure; None for `affordable`.

    Returns:
        The given plan, or one that loses less on both halves of the held-out rows, beyond doubt.
    """
    rules, heldout = context.rules, context.heldout
    card, losses = context.table.model, rules.losses(context.table)
    problem = rules.problem(card, losses, plan.budget_bytes - context.fixed.total)
    for limit in limits:
        problem = limit.applied(problem, card)
    program = problem.program()
    picks = picks_of(problem, plan.formats, card)
    if (
        is_unlimited(plan)
        or picks is None
        or not program.holds(picks)
        or len(heldout) < 2
        or rules.metric is not Metric.kl
    ):
        return plan
    if evaluations is None:
        evaluations = affordable(context)
        context.say(
            f"promotions and demotions: at most {evaluations} whole models on {heldout[EVEN].size:,} tokens, about "
            f"{REPAIR_PASSES:g} pass{'es' if REPAIR_PASSES > 1 else ''} over the calibration"
        )
    seq_len = heldout.shape[1]
    choosing, confirming = (partial(context.whole, rows=half, stage=REPAIRING) for half in (EVEN, ODD))
    first, best = picks, choosing({"": plan.formats})[""]
    start_nats, left = best.kl_nats, evaluations - 1
    while left >= 3:  # two moves and their combination
        moves = nearest_moves(program, picks, min(_MOVES, left - 1))
        trials = {f"{m.group} {m.choice}": _with(picks, m.group, m.choice) for m in moves}
        measured = choosing({label: member_formats(problem, p, card) for label, p in trials.items()})
        changes = {
            (m.group, m.choice): change_of(best, measured[f"{m.group} {m.choice}"], seq_len).at_most for m in moves
        }
        left -= len(moves) + 1
        other = combine(program, picks, changes)
        if other == picks:
            break
        found = choosing({"": member_formats(problem, other, card)})[""]
        if not change_of(best, found, seq_len).is_fall:
            break
        picks, best = other, found
    if picks == first:
        context.say(
            f"no promotion or demotion lowers the loss beyond its error: {evaluations - left} whole models measured"
        )
        return plan
    formats = member_formats(problem, picks, card)
    checked = confirming({"before": plan.formats, "after": formats})
    before, after = checked["before"].kl_nats, checked["after"].kl_nats
    changed = sum(formats[name] != fmt for name, fmt in plan.formats.items())
    if not change_of(checked["before"], checked["after"], seq_len).is_fall:
        context.say(
            f"{changed} promotions and demotions lowered the loss beyond doubt on one half of the held-out rows only: "
            "dropped"
        )
        return plan
    share = (best.kl_nats + after) / (start_nats + before)
    context.say(
        f"{changed} tensors promoted or demoted within the limits: whole-model loss x {share:.3f} on held-out rows"
    )
    better = with_formats(plan, context, formats, limits)
    return better.noted(note("promoted-or-demoted", changed=changed, share=share))


def affordable(context: PlanningContext) -> int:
    """Most whole models that a repair may measure by default."""
    return most_models(context.pass_tokens, context.heldout[EVEN].size)


def most_models(pass_tokens: int, tokens: int) -> int:
    """What `REPAIR_PASSES` allow, up to `EVALUATIONS`.

    Args:
        pass_tokens: of a pass: those that the analysis ran forwards and backwards.
        tokens: that whole models are measured on.
    """
    forwards = REPAIR_PASSES * _FORWARDS * pass_tokens / max(1, tokens)
    return max(_LEAST, min(EVALUATIONS, int(forwards / _SHARE)))


def _with(picks: Sequence[int], group: int, choice: int) -> tuple[int, ...]:
    return (*picks[:group], choice, *picks[group + 1 :])


def with_formats(
    plan: Plan, context: PlanningContext, formats: Formats, limits: Sequence[Ceiling | ResourceLimit]
) -> Plan:
    """The plan with other formats and the numbers of these."""
    table, losses = context.table, context.rules.losses(context.table)
    tensors = planned_tensors(table, formats)
    total = math.fsum(losses[name][fmt.name] for name, fmt in formats.items())
    gap = (total - plan.solver.bound_nats) / total if total else 0.0
    return replace(
        plan,
        tensors=tensors,
        predicted_nats=predicted_nats(tensors, table),
        files=file_bytes(table.model, formats, context.fixed),
        solver=replace(plan.solver, status=REPAIRED, objective_nats=total, gap=gap),
        limits=planned_limits(limits, table.model, formats),
    )
