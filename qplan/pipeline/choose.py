"""Chooses the plan that ships: the planner's, if whole models bear out what single tensors promised."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from qplan.cost.file_bytes import FixedBytes
from qplan.errors import InfeasibleError
from qplan.formats import QuantFormat
from qplan.planner.ceiling import Ceiling
from qplan.planner.limits import Cost, ResourceLimit
from qplan.planner.plan import Plan
from qplan.planner.planning import Rules, make_plan
from qplan.planner.uniform import largest_uniform, uniform_loss
from qplan.sensitivity.joint import joint_losses
from qplan.sensitivity.rounding import Rounder
from qplan.sensitivity.table import Memory, SensitivityTable

Say = Callable[[str], None]

_ROUNDS = 5
"""Times that a plan which loses more than uniform is solved again under a lower ceiling."""

_MARGIN = 0.95
"""How much lower than needed the next ceiling is: losses add up differently in the next plan."""


def choose_plan(
    table: SensitivityTable,
    budget: str | Sequence[str],
    fixed: FixedBytes,
    rules: Rules,
    *,
    rounder: Rounder,
    nearest: Rounder,
    heldout: NDArray[np.int64],
    say: Say,
    limits: Sequence[Ceiling | ResourceLimit] = (),
    minimise: Cost | None = None,
) -> Plan:
    """Solve, then hold the plan against uniform of at most its budget, on held-out tokens, in every memory setting.

    Single losses do not add up exactly, and a plan made for one memory setting may lose in the other. A plan that is
    worse than uniform somewhere is solved again under a ceiling on the loss there, and gives way to uniform itself
    if that does not help: a plan worse than uniform at the same bytes is never emitted. Uniform is what ``nearest``
    makes of the model as the user gave it, which is what MNN's exporter would build.

    Args:
        table: losses.
        budget: one, several that must all hold, or none.
        fixed: bytes that ship whatever the plan.
        rules: what the user wants besides.
        rounder: chooses the integers.
        nearest: of the uniform models.
        heldout: int64 ``[rows, seq_len]``.
        say: told what is being done.
        limits: on other losses, RAM, time.
        minimise: a cost that comes before the loss.

    Raises:
        InputError: a budget or pattern that is not understood.
        InfeasibleError: no plan fits.
    """

    def solve(ceilings: Sequence[Ceiling] = ()) -> Plan:
        return make_plan(table, budget, fixed, rules=rules, ceilings=(*limits, *ceilings), minimise=minimise)

    plan = solve()
    found = largest_uniform(table.model, rules.uniform_fixed or fixed, plan.budget_bytes, rules.uniform_scale_bits)
    if found is None:
        return plan
    name, uniform = found
    most: dict[Memory, float] = {}
    for attempt in range(_ROUNDS):
        if plan.formats == uniform and rounder.rounding == "rtn":
            return replace(plan, notes=(*plan.notes, f"no mix within the limits is better: the plan is uniform {name}"))
        ratios = against(plan, uniform, table, rounder, nearest, heldout=heldout)
        shown = ", ".join(f"memory {memory} {ratio:.2f}" for memory, ratio in ratios.items())
        say(f"joint loss of the plan, times that of MNN's uniform {name}: {shown}")
        if max(ratios.values()) <= 1:
            return plan
        for memory, ratio in ratios.items():
            if ratio > 1:
                reached = uniform_loss(plan.formats, table.kl(memory)) or 0.0
                most[memory] = _MARGIN / ratio * min(reached, most.get(memory, reached))
        say(f"worse than uniform {name}: solving again under a lower ceiling ({attempt + 1} of {_ROUNDS})")
        ceilings = [Ceiling(f"loss under memory {memory}", table.kl(memory), limit) for memory, limit in most.items()]
        try:
            plan = solve(ceilings)
        except InfeasibleError:
            break  # nothing is below the ceiling
    restricted = rules.restricts or limits or minimise is not None
    if restricted or uniform_loss(uniform, table.kl(table.goal)) is None:
        note = f"worse than uniform {name} on held-out tokens; it needs other rules or more --formats to be better"
        return replace(plan, notes=(*plan.notes, note))
    return _give_way(table, budget, fixed, rules, name=name, uniform=uniform)


def with_price_of_nearest(
    plan: Plan, rounder: Rounder, nearest: Rounder, memory: Memory, heldout: NDArray[np.int64]
) -> Plan:
    """The plan with a note of what it would lose as llmexport makes it: unfolded, integers rounded to nearest."""
    folded = nearest.loaded is not rounder.loaded
    if rounder.rounding == "rtn" and not folded:
        return plan
    ours = _joint_nats(rounder, plan.formats, memory, heldout)
    theirs = _joint_nats(nearest, plan.formats, memory, heldout)
    if not ours:
        return plan
    chosen = [
        part
        for part, here in (
            ("scales are folded", folded),
            ("integers are chosen by error feedback", rounder.rounding != "rtn"),
        )
        if here
    ]
    note = (
        f"the built model's {' and its '.join(chosen)}; llmexport only rounds to nearest, and with the same "
        f"formats loses {theirs / ours:.2f} times as much ({theirs:.1e} nats per token, memory {memory})"
    )
    return replace(plan, notes=(*plan.notes, note))


def _give_way(
    table: SensitivityTable,
    budget: str | Sequence[str],
    fixed: FixedBytes,
    rules: Rules,
    *,
    name: str,
    uniform: Mapping[str, QuantFormat],
) -> Plan:
    if rules.uniform_fixed is not None and rules.uniform_fixed.total < fixed.total:
        msg = (
            f"no mix of the folded weights is better than uniform {name} on held-out tokens, and theirs is "
            f"{fixed.total - rules.uniform_fixed.total:,} bytes larger; analyze with --fold off --restart"
        )
        raise InfeasibleError(msg)
    plan = make_plan(table, budget, fixed, rules=replace(rules, pins=uniform))
    note = f"no mix was better than uniform {name} on held-out tokens: the plan is uniform {name}"
    return replace(plan, notes=(*plan.notes, note))


def _joint_nats(
    rounder: Rounder, formats: Mapping[str, QuantFormat], memory: Memory, heldout: NDArray[np.int64]
) -> float:
    """Mean KL per token that torch computes for a whole model, stored by ``rounder``."""
    tokens = torch.from_numpy(heldout)
    losses = joint_losses(rounder.loaded, tokens, {"": formats}, memory, engine_embedding=True, rounder=rounder)
    return losses[""].kl_nats


def against(
    plan: Plan,
    uniform: Mapping[str, QuantFormat],
    table: SensitivityTable,
    rounder: Rounder,
    nearest: Rounder,
    *,
    heldout: NDArray[np.int64],
) -> dict[Memory, float]:
    """The plan's joint loss over that of uniform as MNN's exporter rounds it, by memory setting."""
    ratios: dict[Memory, float] = {}
    for memory in table.memories:
        ours = _joint_nats(rounder, plan.formats, memory, heldout)
        theirs = _joint_nats(nearest, uniform, memory, heldout)
        ratios[memory] = ours / theirs if theirs else float(ours > 0)
    return ratios
