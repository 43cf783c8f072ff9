"""Mode auto: estimates all losses from gradients and measures those that plans depend on."""

from __future__ import annotations

from collections.abc import Collection, Iterator

import numpy as np

from qplan.cost.file_bytes import FixedBytes, estimate_fixed
from qplan.jobs.deciding import decisions
from qplan.notes import Note, note
from qplan.run.table import SensitivityTable
from qplan.sensitivity.analysis import Analysis, Entry
from qplan.sensitivity.blend import blend
from qplan.sensitivity.gradient import estimate
from qplan.sensitivity.measured import measure
from qplan.settings import Progress, Say
from qplan.spread.work import Workers
from qplan.tensors import Role

_ROUNDS = 2
"""Rounds of making plans from the known losses and measuring those that the plans depend on."""

_DRAWS = 4
"""How often losses are drawn from their error distributions, per budget and round."""

_TOLERANCE = 0.01
"""Mean relative loss that errors of estimates may cost a plan before anything is measured for it."""


def analyze_auto(
    analysis: Analysis, *, say: Say, workers: Workers | None = None, progress: Progress | None = None
) -> SensitivityTable:
    """Estimate all losses from gradients, then measure those that decide between formats, and the head.

    For each of `qplan.jobs.deciding.BUDGETS` a plan is made from the losses, and further ones from losses drawn within
    their standard errors. If the plan is worse than these by more than `_TOLERANCE` on average, the losses of the
    formats in which they differ are measured. So is every format below 4 bits that a plan uses.

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
    for decided in decisions(table, fixed, generator, _DRAWS):
        yield from decided.narrow()
        if decided.regret > _TOLERANCE:
            yield from (entry for other in decided.others for entry in decided.differences(other))


def _note(analysis: Analysis, measured: Collection[Entry], scale: float) -> Note:
    entries = [(name, fmt.name, memory) for name, fmt, memory in analysis.entries()]
    saved = 1 - len(measured) / len(entries)
    return note("partly-measured", measured=len(measured), losses=len(entries), saved=saved, scale=scale)
