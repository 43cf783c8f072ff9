"""Chooses the plan that ships: the planner's, if whole models bear out what single tensors promised."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray

from qplan.cost.file_bytes import FixedBytes
from qplan.errors import InfeasibleError
from qplan.formats import QuantFormat
from qplan.planner.ceiling import Ceiling
from qplan.planner.plan import Plan
from qplan.planner.planning import make_plan
from qplan.planner.uniform import largest_uniform, uniform_loss
from qplan.sensitivity.joint import joint_losses
from qplan.sensitivity.rounding import Rounder
from qplan.sensitivity.table import Memory, SensitivityTable

Say = Callable[[str], None]

_ROUNDS = 5
"""Times that a plan which loses more than uniform is solved again under a lower ceiling."""

_MARGIN = 0.95
"""How much lower than needed the next ceiling is: losses add up differently in the next plan."""


@dataclass(frozen=True)
class PlanRules:
    """What the user wants besides a budget."""

    logits_bits: int = 8
    pins: Mapping[str, QuantFormat] = field(default_factory=dict)
    min_bits: Mapping[str, int] = field(default_factory=dict)


def choose_plan(
    table: SensitivityTable,
    budget: str,
    fixed: FixedBytes,
    rules: PlanRules,
    *,
    rounder: Rounder,
    nearest: Rounder,
    heldout: NDArray[np.int64],
    say: Say,
) -> Plan:
    """Solve, then hold the plan against uniform of at most its budget, on held-out tokens, in every memory setting.

    Single losses do not add up exactly, and a plan made for one memory setting may lose in the other. A plan that is
    worse than uniform somewhere is solved again under a ceiling on the loss there, and gives way to uniform itself
    if that does not help: a plan worse than uniform at the same bytes is never emitted. Uniform is what ``nearest``
    makes of the model as the user gave it, which is what MNN's exporter would build.

    Raises:
        InputError: a budget or pattern that is not understood.
        InfeasibleError: no plan fits.
    """
    plan = _solve(table, budget, fixed, rules)
    found = largest_uniform(table.model, fixed, plan.budget_bytes)
    if found is None:
        return plan
    name, uniform = found
    limits: dict[Memory, float] = {}
    for attempt in range(_ROUNDS):
        if plan.formats == uniform and rounder.rounding == "rtn":
            return replace(plan, notes=(*plan.notes, f"no mix within the limits is better: the plan is uniform {name}"))
        ratios = _against(plan, uniform, table, rounder, nearest, heldout=heldout)
        shown = ", ".join(f"memory {memory} {ratio:.2f}" for memory, ratio in ratios.items())
        say(f"joint loss of the plan, times that of MNN's uniform {name}: {shown}")
        if max(ratios.values()) <= 1:
            return plan
        for memory, ratio in ratios.items():
            if ratio > 1:
                reached = uniform_loss(plan.formats, table.kl(memory)) or 0.0
                limits[memory] = _MARGIN / ratio * min(reached, limits.get(memory, reached))
        say(f"worse than uniform {name}: solving again under a lower ceiling ({attempt + 1} of {_ROUNDS})")
        ceilings = [Ceiling(f"loss under memory {memory}", table.kl(memory), limit) for memory, limit in limits.items()]
        try:
            plan = _solve(table, budget, fixed, rules, ceilings)
        except InfeasibleError:
            break  # nothing is below the ceiling
    if rules != PlanRules() or uniform_loss(uniform, table.kl(table.goal)) is None:
        note = f"worse than uniform {name} on held-out tokens; it needs other rules or more --formats to be better"
        return replace(plan, notes=(*plan.notes, note))
    return _give_way(table, budget, fixed, name, uniform)


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


def _solve(
    table: SensitivityTable, budget: str, fixed: FixedBytes, rules: PlanRules, ceilings: list[Ceiling] | None = None
) -> Plan:
    return make_plan(
        table,
        budget,
        fixed,
        logits_bits=rules.logits_bits,
        pins=rules.pins,
        min_bits=rules.min_bits,
        ceilings=ceilings or (),
    )


def _give_way(
    table: SensitivityTable, budget: str, fixed: FixedBytes, name: str, uniform: Mapping[str, QuantFormat]
) -> Plan:
    plan = make_plan(table, budget, fixed, pins=uniform)
    note = f"no mix was better than uniform {name} on held-out tokens: the plan is uniform {name}"
    return replace(plan, notes=(*plan.notes, note))


def _joint_nats(
    rounder: Rounder, formats: Mapping[str, QuantFormat], memory: Memory, heldout: NDArray[np.int64]
) -> float:
    """Mean KL per token that torch computes for a whole model, stored by ``rounder``."""
    tokens = torch.from_numpy(heldout)
    losses = joint_losses(rounder.loaded, tokens, {"": formats}, memory, engine_embedding=True, rounder=rounder)
    return losses[""].kl_nats


def _against(
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
