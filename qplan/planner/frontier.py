"""The whole trade-off from one table: the best plan at every size, and where it bends."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from qplan.cost.file_bytes import FixedBytes, bits_per_weight, file_bytes
from qplan.errors import InfeasibleError, InputError
from qplan.formats import QuantFormat
from qplan.planner.plan import UniformPoint
from qplan.planner.planning import UNIFORM_BITS, Rules, member_formats
from qplan.planner.program import Solution
from qplan.planner.solver import solve
from qplan.planner.uniform import uniform_formats, uniform_loss
from qplan.sensitivity.table import SensitivityTable

POINTS = 24
POINT_TIME_LIMIT_S = 10.0
_KNEE = 0.5
"""A knee's curvature is at least this part of the largest."""


@dataclass(frozen=True)
class FrontierPoint:
    """The best plan of one size."""

    total_bytes: int
    """All files of the plan, not larger than the budget it was solved for."""
    bpw: float
    """Bits of weight and embedding files per parameter."""
    predicted_nats: float
    """Sum of single-tensor losses."""
    gap: float
    """What the solver left unproved, relative; 0 is optimal."""
    formats: dict[str, QuantFormat]
    """By Hugging Face name."""
    knee: bool
    """Whether the curve of log loss over bytes bends most here: below it bytes buy much, above it little."""


@dataclass(frozen=True)
class Frontier:
    """A sweep of budgets."""

    points: tuple[FrontierPoint, ...]
    """From the smallest plan to the least loss, bytes ascending, no plan twice."""
    uniform: tuple[UniformPoint, ...]
    """int4, int8 and fp16 for comparison."""


def frontier(
    table: SensitivityTable, fixed: FixedBytes, *, rules: Rules | None = None, points: int = POINTS
) -> Frontier:
    """Solve a sweep of budgets, in geometric steps from the smallest plan to the one with the least loss.

    Args:
        table: measured losses.
        fixed: bytes that ship whatever the plan.
        rules: groups, pins, the logits rule.
        points: budgets to solve; fewer plans come back where neighbours are equal.

    Raises:
        InputError: fewer than two points, or rules that match nothing.
        InfeasibleError: the rules allow no plan of any size.
    """
    if points < 2:
        msg = f"a frontier of {points} points: give at least 2"
        raise InputError(msg)
    rules = rules or Rules()
    card, losses = table.model, rules.losses(table)
    problem = rules.problem(card, losses, None)
    smallest, best = solve(problem.smallest_program()), solve(problem.program())
    if not smallest.picks or not best.picks:
        msg = "the rules allow no plan of any size; loosen --pin or --min-bits, or set --logits-bits 0"
        raise InfeasibleError(msg)
    low = problem.picked_bytes(smallest.picks)
    high = max(problem.picked_bytes(best.picks), low)
    solved: dict[tuple[int, ...], Solution] = {}
    known = smallest.picks
    for limit in np.geomspace(low + fixed.total, high + fixed.total, points):
        capped = min(max(round(float(limit)) - fixed.total, low), high)
        program = replace(problem, limit_bytes=capped).program()
        solution = solve(program, known=[known, best.picks], time_limit_s=POINT_TIME_LIMIT_S)
        known = solution.picks
        solved.setdefault(known, solution)
    found = []
    for picks, solution in solved.items():
        formats = member_formats(problem, picks, card)
        files = file_bytes(card, formats, fixed)
        found.append(
            FrontierPoint(
                files.total, bits_per_weight(files, card), solution.objective, solution.gap, formats, knee=False
            )
        )
    found.sort(key=lambda point: point.total_bytes)
    bends = knees([p.total_bytes for p in found], [p.predicted_nats for p in found])
    uniform = {name: uniform_formats(card, bits) for name, bits in UNIFORM_BITS.items()}
    return Frontier(
        tuple(replace(point, knee=index in bends) for index, point in enumerate(found)),
        tuple(
            UniformPoint(name, file_bytes(card, f, fixed).total, uniform_loss(f, losses)) for name, f in uniform.items()
        ),
    )


def knees(sizes: Sequence[float], losses: Sequence[float]) -> tuple[int, ...]:
    """Indices where the curve of log loss over size bends upwards most.

    Both axes are scaled to 0..1; the curvature is that of the circle through a point and its neighbours
    (Menger). A knee is a local maximum of at least half the largest.

    Args:
        sizes: ascending, bytes.
        losses: not negative; zeros count as the smallest positive loss.
    """
    if len(sizes) < 3 or max(losses) <= 0:
        return ()
    smallest = min(loss for loss in losses if loss > 0)
    points = list(zip(_unit(sizes), _unit([math.log(max(loss, smallest)) for loss in losses]), strict=True))
    bends = [0.0] + [_bend(*points[i - 1 : i + 2]) for i in range(1, len(points) - 1)] + [0.0]
    largest = max(bends)
    if largest <= 1e-9:
        return ()
    return tuple(
        i
        for i in range(1, len(bends) - 1)
        if bends[i] >= _KNEE * largest and bends[i] > bends[i - 1] and bends[i] >= bends[i + 1]
    )


def _unit(values: Sequence[float]) -> list[float]:
    low, span = min(values), max(values) - min(values)
    return [(value - low) / span if span else 0.0 for value in values]


def _bend(a: tuple[float, float], b: tuple[float, float], c: tuple[float, float]) -> float:
    """Menger curvature of three points, positive where the curve is convex."""
    area = (b[0] - a[0]) * (c[1] - a[1]) - (c[0] - a[0]) * (b[1] - a[1])
    sides = math.dist(a, b) * math.dist(b, c) * math.dist(a, c)
    return 2 * area / sides if sides else 0.0
