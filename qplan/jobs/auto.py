"""Mode auto: estimates all losses from gradients and measures those that plans depend on."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from dataclasses import replace
from statistics import fmean

import numpy as np

from qplan.cost.file_bytes import FixedBytes, estimate_fixed
from qplan.errors import InfeasibleError
from qplan.formats import QuantFormat
from qplan.notes import Note, note
from qplan.planner.budget import parse_budgets
from qplan.planner.planning import make_plan
from qplan.run.measurement import Loss
from qplan.run.plan import Plan
from qplan.run.table import SensitivityTable
from qplan.sensitivity.analysis import Analysis, Entry
from qplan.sensitivity.blend import blend
from qplan.sensitivity.gradient import estimate
from qplan.sensitivity.measured import measure
from qplan.settings import Memory, Progress, Say
from qplan.spread.work import Workers
from qplan.tensors import Role

BUDGETS = parse_budgets(["3.5bpw, 4bpw, int4, 4.5bpw, 5bpw, 6bpw, int8, 8bpw"])
"""Budgets that plans are compared at; infeasible ones are skipped."""

_ROUNDS = 2
"""Rounds of making plans from the known losses and measuring those that the plans depend on."""

_DRAWS = 4
"""How often losses are drawn from their error distributions, per budget and round."""

_TOLERANCE = 0.01
"""Mean relative loss that errors of estimates may cost a plan before anything is measured for it."""

_NARROW_BITS, _NARROW_ERROR = 4, 0.3
"""Width below which the second-order estimate may fail, and the relative standard error to assume there."""


def analyze_auto(
    analysis: Analysis, *, say: Say, workers: Workers | None = None, progress: Progress | None = None
) -> SensitivityTable:
    """Estimate all losses from gradients, then measure those that decide between formats, and the head.

    For each of `BUDGETS` a plan is made from the losses, and further ones from losses drawn within their standard
    errors. If the plan is worse than these by more than `_TOLERANCE` on average, the losses of the formats in which
    they differ are measured. So is every format below 4 bits that a plan uses.

    Args:
        analysis: the analysis, with the entries to find.
        say: called with a line about each step.
        workers: of a cluster, who measure instead of this process.
        progress: called after each batch of estimates and each measurement.

    Raises:
        MeasurementError: an estimate or a measurement is impossible.
    """
    say("gradients of all formats in one pass")
    estimate(analysis, progress=progress)
    fixed = estimate_fixed(analysis.loaded.card)
    measured: set[Entry] = set()
    generator = np.random.default_rng(analysis.conditions.seed)
    for _ in range(_ROUNDS):
        table = analysis.table("auto", blend(analysis, measured)[0])
        new = {*_of_heads(analysis), *_deciding(table, fixed, generator)} - measured
        if not new:
            break
        say(f"measuring {len(new)} losses that plans depend on")
        measure(analysis, new, workers=workers, progress=progress)
        measured |= new
    rows, scale = blend(analysis, measured)
    return analysis.table("auto", rows, (_note(analysis, measured, scale),))


def _of_heads(analysis: Analysis) -> Iterator[Entry]:
    goal = analysis.conditions.memory
    for spec in analysis.loaded.card.tensors:
        if spec.role is Role.HEAD:
            yield from ((spec.name, fmt.name, goal) for fmt in analysis.menu[spec.name])


def _deciding(table: SensitivityTable, fixed: FixedBytes, generator: np.random.Generator) -> Iterator[Entry]:
    """Entries that plans depend on."""
    errors = {
        (name, fmt): _relative_error(fmt, loss) for name, row in table.losses().items() for fmt, loss in row.items()
    }
    for budget in BUDGETS:
        try:
            plan = make_plan(table, budget, fixed)
        except InfeasibleError:
            continue
        yield from ((n, f.name, table.goal) for n, f in plan.formats.items() if f.bits < _NARROW_BITS)
        others, regrets = [], []
        for _ in range(_DRAWS):
            factors = {key: math.exp(error * generator.standard_normal()) for key, error in errors.items()}
            rows = (replace(m, kl_nats=m.kl_nats * factors[m.tensor, m.format]) for m in table.measurements)
            drawn = replace(table, measurements=tuple(rows))
            other, losses = make_plan(drawn, budget, fixed), drawn.kl(table.goal)
            others.append(other)
            ours = math.fsum(losses[name][fmt.name] for name, fmt in plan.formats.items())
            regrets.append(ours / least - 1 if (least := other.solver.objective_nats) else 0.0)
        if fmean(regrets) > _TOLERANCE:
            yield from (entry for other in others for entry in _differences(plan, other, table.goal))


def _differences(plan: Plan, other: Plan, memory: Memory) -> Iterator[Entry]:
    for ours, theirs in zip(plan.tensors, other.tensors, strict=True):
        if ours.format != theirs.format:
            yield ours.name, ours.format.name, memory
            yield ours.name, theirs.format.name, memory


def _relative_error(fmt: str, loss: Loss) -> float:
    """Relative standard error of a loss; 0 if measured, since estimates are made on the same tokens."""
    if loss.source == "measured" or not loss.kl_nats:
        return 0.0
    narrow = QuantFormat.parse(fmt).bits < _NARROW_BITS
    return math.hypot(loss.stderr_nats / loss.kl_nats, _NARROW_ERROR if narrow else 0.0)


def _note(analysis: Analysis, measured: Collection[Entry], scale: float) -> Note:
    entries = [(name, fmt.name, memory) for name, fmt, memory in analysis.entries()]
    saved = 1 - len(measured) / len(entries)
    return note("partly-measured", measured=len(measured), losses=len(entries), saved=saved, scale=scale)
