"""Measures whole plans along the frontier: how far single losses are from adding up."""

from __future__ import annotations

import math
from dataclasses import replace

from torch import Tensor

from qplan.cost.file_bytes import estimate_fixed
from qplan.formats import Formats
from qplan.model.load import LoadedModel
from qplan.planner.budget import Budget
from qplan.planner.planning import make_plan
from qplan.planner.rules import Rules
from qplan.rounding import Int8Activations
from qplan.rounding.rounder import Rounder
from qplan.run.additivity import JointPoint
from qplan.run.table import SensitivityTable
from qplan.sensitivity.joint import joint_losses
from qplan.settings import Progress

_PLACES = (0.0, 0.15, 0.3, 0.5, 0.75)
"""Sizes of the measured plans, from the smallest (0) to the largest (1) in the logarithm of bytes. Most are small,
since large losses add up worst."""


def measure_additivity(
    table: SensitivityTable,
    loaded: LoadedModel,
    tokens: Tensor,
    *,
    batch_size: int = 4,
    rounder: Rounder | None = None,
    progress: Progress | None = None,
) -> SensitivityTable:
    """Measure the joint losses of a few plans under the table's memory setting.

    Args:
        table: single losses.
        loaded: the model.
        tokens: the tokens that the table was measured on, int64 ``[rows, seq_len]``.
        batch_size: rows per pass.
        rounder: chooses the integers; None rounds to nearest.
        progress: called after each pass.

    Returns:
        The table, with a point for each plan.

    Raises:
        MeasurementError: a loss is not finite.
    """
    plans = {str(index): formats for index, formats in enumerate(frontier_plans(table))}
    joint = joint_losses(
        loaded,
        tokens,
        plans,
        table.goal,
        Int8Activations("prefill", table.conditions.dynamic_option),
        batch_size=batch_size,
        rounder=rounder,
        progress=progress,
    )
    points = (
        JointPoint(table.goal, sum_nats(table, formats), joint[label].kl_nats) for label, formats in plans.items()
    )
    return replace(table, joint=tuple(points))


def sum_nats(table: SensitivityTable, formats: Formats) -> float:
    """Sum of the single losses of a plan."""
    single = table.ordered_kl(table.goal)
    return math.fsum(single[name][fmt.name] for name, fmt in formats.items())


def frontier_plans(table: SensitivityTable) -> list[Formats]:
    """The plans to measure: a few along the frontier, without a rule about logits."""
    fixed = estimate_fixed(table.model)
    rules = Rules(logits_bits=0)
    groups = rules.problem(table.model, rules.losses(table), None).groups
    smallest, largest = (
        fixed.total + sum(end(choice.bytes for choice in group.choices) for group in groups) for end in (min, max)
    )
    found: list[Formats] = []
    for place in _PLACES:
        budget = math.ceil(smallest ** (1 - place) * largest**place)
        formats = make_plan(table, Budget.of_bytes(budget), fixed, rules=rules).formats
        if formats not in found:
            found.append(formats)
    return found
