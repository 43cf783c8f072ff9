"""Blends measured losses, where they are known, with gradient estimates everywhere else."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import replace
from statistics import fmean

from qplan.formats import QuantFormat
from qplan.run.measurement import Measurement
from qplan.sensitivity.analysis import Analysis, Entry
from qplan.settings import Memory, memories_of

_FEWEST = 8
"""The fewest measured entries that the common scale of gradient estimates is computed from; fewer are too noisy."""


_PRIOR = 2.0
"""Measured entries that say as much about the scale of a width as it is known beforehand to be near 1: the variance of
log(measured / gradient) over tensors of one width, over that of its mean over widths; ``reports/effort``."""


def width_scales(analysis: Analysis, measured: Collection[Entry]) -> dict[int, float]:
    """Scale of gradient estimates by width, from what was measured of each; few entries count for little.

    Error feedback makes errors of different output features alike, the more so the narrower the width: the row form of
    the estimate leaves that out.
    """
    logs: dict[int, list[float]] = {}
    for entry in sorted(measured):
        fmt, log = QuantFormat.parse(entry[1]), _log_ratio(analysis, entry)
        if log is not None and not fmt.is_float:
            logs.setdefault(fmt.bits, []).append(log)
    return {bits: math.exp(math.fsum(found) / (len(found) + _PRIOR)) for bits, found in sorted(logs.items())}


def blend(
    analysis: Analysis, measured: Collection[Entry], by_width: Mapping[int, float] | None = None
) -> tuple[list[Measurement], float]:
    """Rows of the table: measured ones, and gradient estimates brought to the scale of the measured ones.

    The errors of gradient estimates are specific to the rounding of one tensor in one format and hardly correlate
    between formats of a tensor (``reports/sensitivity/``). So only the mean of log(measured / gradient) over everything
    that was measured is applied to other formats. Between memory settings of one tensor and format, the error is the
    same to the extent that it comes from the weights, and is carried over to that extent.

    Args:
        analysis: the analysis, with estimates of all entries.
        measured: entries that were measured, on all batches or the first ones.
        by_width: scales to bring estimates of each width to, see `width_scales`; None for the common one.

    Returns:
        The rows in the order of the table, and the common scale.
    """
    logs = {entry: log for entry in measured if (log := _log_ratio(analysis, entry)) is not None}
    integer = [log for (_, fmt, _), log in logs.items() if not QuantFormat.parse(fmt).is_float]
    common = fmean(integer) if len(integer) >= _FEWEST else 0.0
    rows: list[Measurement] = []
    for name, fmt, memory in analysis.entries():
        entry = (name, fmt.name, memory)
        if entry in measured:
            rows.extend(_brought(analysis, entry, logs.get(entry, 0.0)))
            continue
        scale = math.exp(common) if by_width is None else by_width.get(fmt.bits, 1.0)
        twin = _twin(analysis, entry, logs)
        if twin is not None:
            scale = math.exp(logs[twin] * _carried(analysis, name, fmt))
        rows.extend(_scaled(row, scale) for row in analysis.rows(entry, "gradient"))
    return rows, math.exp(common)


def _log_ratio(analysis: Analysis, entry: Entry) -> float | None:
    """Log of measured over gradient loss, over the batches that were measured; None if either is 0."""
    pairs = [(ours, theirs) for ours, theirs in _pairs(analysis, entry) if ours is not None]
    sums = [math.fsum(row.tokens * row.kl_nats for row in rows) for rows in zip(*pairs, strict=True)]
    return math.log(sums[0] / sums[1]) if min(sums) > 0 else None


def _pairs(analysis: Analysis, entry: Entry) -> list[tuple[Measurement | None, Measurement]]:
    """Of each batch, what was measured if anything was, and the estimate."""
    known = analysis.kept.measurements
    estimates = enumerate(analysis.rows(entry, "gradient"))
    return [(known.get((*entry, batch, "measured")), estimate) for batch, estimate in estimates]


def _brought(analysis: Analysis, entry: Entry, log: float) -> list[Measurement]:
    """Measured batches, and the estimates of the others multiplied by what the measured ones say."""
    return [
        _scaled(estimate, math.exp(log)) if measured is None else measured
        for measured, estimate in _pairs(analysis, entry)
    ]


def _twin(analysis: Analysis, entry: Entry, logs: Collection[Entry]) -> Entry | None:
    """The same tensor and format under another memory setting, if it was measured."""
    others: list[Entry] = [(entry[0], entry[1], memory) for memory in memories_of(analysis.conditions.memory)]
    return next((other for other in others if other != entry and other in logs), None)


def _carried(analysis: Analysis, name: str, fmt: QuantFormat) -> float:
    """How much of the log ratio of one memory setting carries over to the other.

    Let ``s`` be the weights' share of the loss under memory low. If weights and activations have independent relative
    errors of equal size, the regression of the weights' error on the whole is ``s / (s^2 + (1 - s)^2)``.
    """
    if fmt.is_float or analysis.conditions.memory == "normal":
        return 1.0
    memories: tuple[Memory, Memory] = ("normal", "low")
    normal, low = (
        math.fsum(r.tokens * r.kl_nats for r in analysis.rows((name, fmt.name, memory), "gradient"))
        for memory in memories
    )
    share = min(1.0, normal / low) if low > 0 else 1.0
    return min(1.0, share / (share**2 + (1 - share) ** 2))


def _scaled(row: Measurement, scale: float) -> Measurement:
    stderr = None if row.stderr_nats is None else row.stderr_nats * scale
    return replace(row, kl_nats=row.kl_nats * scale, stderr_nats=stderr)
