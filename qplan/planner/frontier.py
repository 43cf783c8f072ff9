"""The frontier of one table: the best plan at every size, and where the curve bends."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace

import numpy as np

from qplan.artifact import sha256_json
from qplan.card import ModelCard
from qplan.cost.file_bytes import FixedBytes, bits_per_weight, file_bytes
from qplan.cost.footprint import footprint
from qplan.errors import InfeasibleError, InputError
from qplan.formats import QuantFormat
from qplan.planner.budget import Budget
from qplan.planner.limits import ResourceLimit
from qplan.planner.planning import member_formats
from qplan.planner.rules import Rules
from qplan.planner.solver.program import Solution
from qplan.planner.solver.solver import solve
from qplan.planner.uniform import uniform_loss
from qplan.planner.widen import widened
from qplan.run.frontier import POINTS, Frontier, FrontierPoint, NamedPlan, Sweep, UniformModel
from qplan.run.table import SensitivityTable
from qplan.uniform import UNIFORM_NAMES, uniform_formats

Promised = Mapping[str, Sequence[ResourceLimit]]
"""Limits on RAM and times by the name of a budget that promises them."""

POINT_TIME_LIMIT_S = 10.0
_KNEE = 0.5
"""The least curvature of a knee, as a fraction of the largest."""
_REACH = 0.12
"""Distance to the neighbors that curvature is computed from, both axes being 1 long; smaller wiggles don't count."""


def frontier(
    table: SensitivityTable,
    fixed: FixedBytes,
    *,
    rules: Rules | None = None,
    points: int = POINTS,
    promised: Promised | None = None,
) -> Frontier:
    """Solve a sweep of budgets, in geometric steps from the smallest plan to the one with the least loss.

    Args:
        table: measured losses.
        fixed: bytes that every plan ships.
        rules: groups, pins, the logits rule.
        points: budgets to solve; equal plans are returned once.
        promised: limits that come with budgets such as ``int4``, see `qplan.choosing.parity`; plans of these are solved
            too, where there are any.

    Raises:
        InputError: fewer than two points, or rules that match nothing.
        InfeasibleError: the rules allow no plan of any size.
    """
    if points < 2:
        msg = f"a frontier of {points} points: give at least 2"
        raise InputError(msg)
    start = time.perf_counter()
    rules = rules or Rules()
    table = rules.seen(table)
    card, losses, kl = table.model, rules.losses(table), table.ordered_kl(table.goal)
    problem = rules.problem(card, losses, None)
    smallest, best = solve(problem.smallest_program()), solve(problem.program())
    if not smallest.picks or not best.picks:
        msg = "the rules allow no plan of any size; loosen --pin or --min-bits, or set --logits-bits 0"
        raise InfeasibleError(msg)
    low, last = problem.picked_bytes(smallest.picks), widened(problem, best.picks)
    high = max(problem.picked_bytes(last), low)
    solved: dict[tuple[int, ...], Solution] = {}
    known = smallest.picks
    for limit in np.geomspace(low + fixed.total, high + fixed.total, points):
        capped = min(max(round(float(limit)) - fixed.total, low), high)
        program = replace(problem, limit_bytes=capped).program()
        solution = solve(program, known=[known, last], time_limit_s=POINT_TIME_LIMIT_S)
        known = solution.picks
        solved.setdefault(widened(replace(problem, limit_bytes=capped), known), solution)

    def point(picks: tuple[int, ...], solution: Solution) -> FrontierPoint:
        formats = member_formats(problem, picks, card)
        files = file_bytes(card, formats, fixed)
        total = math.fsum(kl[name][fmt.name] for name, fmt in formats.items())
        return FrontierPoint(
            total_bytes=files.total,
            bpw=bits_per_weight(files, card),
            predicted_nats=total,
            joint_nats=table.predict_joint(total),
            gap=solution.gap,
            formats=formats,
            knee=False,
            footprint=footprint(card, formats, rules.target, table.goal),
        )

    found = [point(picks, solution) for picks, solution in solved.items()]
    named = []
    for name, limits in (promised or {}).items():
        budget = Budget.parse(name).resolve(card, rules.uniform_fixed or fixed, rules.uniform_scale_bits)
        limited = problem.within(budget.limit_bytes - fixed.total)
        for limit in limits:
            limited = limit.applied(limited, card)
        solution = solve(limited.program(), time_limit_s=POINT_TIME_LIMIT_S)
        if solution.picks:
            named.append(NamedPlan(name, point(widened(limited, solution.picks), solution)))
    named.sort(key=lambda plan: plan.point.total_bytes)
    found.sort(key=lambda point: point.total_bytes)
    # where most weights are floats, a curve is about how many of them, and no bend of it is a place to stop at
    rounded = [p for p in found if 2 * _float_weights(card, p.formats) <= sum(s.weights for s in card.planned)]
    bends = knees([p.total_bytes for p in rounded], [p.joint_nats for p in rounded])
    marked = tuple(replace(point, knee=index in bends) for index, point in enumerate(found))
    uniform = _uniform(table, fixed, kl, rules)
    return Frontier(marked, uniform, time.perf_counter() - start, tuple(named))


def sweep_of(
    table: SensitivityTable,
    rules: Rules,
    fixed: FixedBytes,
    *,
    block_activations: bool = False,
    promised: Promised | None = None,
) -> Sweep:
    """Fingerprint everything that a frontier is solved from.

    Args:
        table: losses.
        rules: what the user wants.
        fixed: bytes that every plan ships.
        block_activations: whether only formats that ``dynamic_option`` 2 allows are offered.
        promised: limits that come with budgets such as ``int4``.
    """
    given = asdict(rules.given) | {
        "pins": {pattern: fmt.name for pattern, fmt in rules.pins.items()},
        "logits_bits": rules.logits_bits,
        "target": str(rules.target),
        "fixed_bytes": fixed.total,
        "block_activations": block_activations,
    }
    if promised:  # frontiers of before promised nothing
        given["promised"] = {name: [(one.name, one.limit) for one in limits] for name, limits in promised.items()}
    return Sweep(table.sha256, sha256_json(given))


def _float_weights(card: ModelCard, formats: Mapping[str, QuantFormat]) -> int:
    return sum(spec.weights for spec in card.planned if formats[spec.name].is_float)


def _uniform(
    table: SensitivityTable, fixed: FixedBytes, losses: Mapping[str, Mapping[str, float]], rules: Rules
) -> tuple[UniformModel, ...]:
    found = []
    for bits, name in reversed(UNIFORM_NAMES.items()):
        formats = uniform_formats(table.model, bits, rules.uniform_scale_bits)
        loss = uniform_loss(formats, losses)
        if loss is not None:
            size = file_bytes(table.model, formats, fixed).total
            taken = footprint(table.model, formats, rules.target, table.goal)
            found.append(UniformModel(name, size, table.predict_joint(loss), taken))
    return tuple(found)


def knees(sizes: Sequence[float], losses: Sequence[float]) -> tuple[int, ...]:
    """Indices where the curve of log loss over size bends upwards most.

    Both axes are scaled to 0..1. The curvature is that of the circle through a point and the nearest points at least
    `_REACH` away on each side (Menger). A knee is a local maximum of at least half the largest curvature.

    Args:
        sizes: ascending, bytes.
        losses: nats, not negative; points with loss 0 have no logarithm and are left out.
    """
    kept = [index for index, loss in enumerate(losses) if loss > 0]
    if len(kept) < 3:
        return ()
    points = list(zip(_unit([sizes[i] for i in kept]), _unit([math.log(losses[i]) for i in kept]), strict=True))
    bends = [0.0] + [_bend_at(points, i) for i in range(1, len(points) - 1)] + [0.0]
    largest = max(bends)
    if largest <= 1e-9:
        return ()
    return tuple(
        kept[i]
        for i in range(1, len(bends) - 1)
        if bends[i] >= _KNEE * largest and bends[i] > bends[i - 1] and bends[i] >= bends[i + 1]
    )


def _unit(values: Sequence[float]) -> list[float]:
    low, span = min(values), max(values) - min(values)
    return [(value - low) / span if span else 0.0 for value in values]


def _bend_at(points: Sequence[tuple[float, float]], index: int) -> float:
    here = points[index]
    left = next((i for i in range(index - 1, 0, -1) if math.dist(points[i], here) >= _REACH), 0)
    last = len(points) - 1
    right = next((i for i in range(index + 1, last) if math.dist(points[i], here) >= _REACH), last)
    return _bend(points[left], here, points[right])


def _bend(a: tuple[float, float], b: tuple[float, float], c: tuple[float, float]) -> float:
    """Menger curvature of three points, positive where the curve is convex."""
    area = (b[0] - a[0]) * (c[1] - a[1]) - (c[0] - a[0]) * (b[1] - a[1])
    sides = math.dist(a, b) * math.dist(b, c) * math.dist(a, c)
    return 2 * area / sides if sides else 0.0
