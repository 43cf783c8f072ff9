"""What the page's script works with, embedded once as JSON: losses by tensor and format, the frontier, its words."""

from __future__ import annotations

import json
import math
from typing import Any

from markupsafe import Markup

from qplan.formats import QuantFormat
from qplan.report.frontier_rows import against_uniform
from qplan.report.grid import LossTable
from qplan.report.palette import BITS
from qplan.report.trade_off import nearest_stop
from qplan.report.words import Words
from qplan.run.frontier import Frontier
from qplan.run.measurement import Loss
from qplan.run.plan import Plan
from qplan.run.table import SensitivityTable
from qplan.tensors import TensorSpec


def page_data(
    table: SensitivityTable, plan: Plan, losses: LossTable, frontier: Frontier | None, words: Words
) -> dict[str, Any]:
    """The data of one page.

    Formats are places in ``formats``, tensors places in ``tensors``; a cell is loss, standard error (nats per token),
    SQNR (dB, null if infinite), 1 if estimated from gradients, bytes of the record, and the stored format.
    """
    specs = table.model.planned
    detailed = losses.detailed
    named = dict.fromkeys(losses.formats)
    named |= dict.fromkeys(losses.stored_as.values())
    named |= dict.fromkeys(tensor.format.name for tensor in plan.tensors)
    if frontier is not None:
        named |= dict.fromkeys(fmt.name for point in frontier.points for fmt in point.formats.values())
    places = {name: place for place, name in enumerate(named)}
    planned = {tensor.name: tensor for tensor in plan.tensors}
    return {
        "language": words.language.tag,
        "words": _script_words(words),
        "formats": [[name, QuantFormat.parse(name).bits] for name in named],
        "widths": sorted(BITS),
        "columns": len(losses.formats),
        "tensors": [
            [s.name, s.kind, s.layer, s.weights, places[planned[s.name].format.name], planned[s.name].bytes]
            for s in specs
        ]
        if detailed
        else [],
        "cells": [_cells(spec, losses, places) for spec in specs] if detailed else [],
        "plan": {
            "bytes": plan.files.total,
            "nats": _rounded(plan.predicted_nats),
            "stop": None if frontier is None else nearest_stop(frontier, plan),
        },
        "stops": [] if frontier is None else _stops(table, frontier, places, detailed=detailed),
        "uniform": []
        if frontier is None
        else [[m.name.upper(), m.total_bytes, _rounded(m.joint_nats)] for m in frontier.uniform],
    }


def embedded(data: dict[str, Any]) -> Markup:
    """JSON that is safe between ``<script>`` tags: no ``<`` can end the element or open a comment."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for mark in "<>&\u2028\u2029":
        text = text.replace(mark, f"\\u{ord(mark):04x}")
    return Markup(text)  # noqa: S704 - escaped above, and in no other place than inside a script element


def _cells(spec: TensorSpec, losses: LossTable, places: dict[str, int]) -> list[list[float | None] | None]:
    row = losses.losses[spec.name]
    return [
        _cell(spec, row[name], losses.stored_as.get((spec.name, name), name), places) if name in row else None
        for name in losses.formats
    ]


def _cell(spec: TensorSpec, cell: Loss, stored: str, places: dict[str, int]) -> list[float | None]:
    return [
        _rounded(cell.kl_nats),
        _rounded(cell.stderr_nats),
        round(cell.sqnr_db, 1) if math.isfinite(cell.sqnr_db) else None,
        int(cell.source == "gradient"),
        spec.bytes_in(QuantFormat.parse(stored)),
        places[stored],
    ]


def _stops(
    table: SensitivityTable, frontier: Frontier, places: dict[str, int], *, detailed: bool
) -> list[dict[str, Any]]:
    def share(value: float | None) -> float | None:
        return None if value is None else _rounded(value, 6)

    return [
        {
            "bytes": point.total_bytes,
            "bpw": round(point.bpw, 2),
            "nats": _rounded(point.joint_nats),
            "against": share(against_uniform(frontier, point)),
            "knee": point.knee,
            "formats": [places[point.formats[s.name].name] for s in table.model.planned] if detailed else [],
        }
        for point in frontier.points
    ]


def _rounded(value: float, digits: int = 4) -> float:
    """Round to the digits that are shown."""
    return float(f"{value:.{digits}g}")


def _script_words(words: Words) -> dict[str, str]:
    """Messages of the page's script, with their ``{places}`` left open."""
    return {
        "loss": words.pattern("loss {loss} ± {error} nats/token"),
        "interval": words.pattern("95 % interval {low} to {high}"),
        "measured": words.pattern("measured"),
        "gradient": words.pattern("estimated from gradients"),
        "stored": words.pattern("stored as {format}"),
        "planned": words.pattern("in the plan"),
        "in_plan": words.pattern("in the plan: {format}"),
        "bytes": words.pattern("{size} in the file"),
        "more": words.pattern("and {count} more"),
        "shown": words.pattern("{shown} of {count} tensors"),
        "stop": words.pattern("{size}, {bpw} bits per weight, predicted loss {loss} nats/token"),
        "same": words.pattern("The same formats as this plan."),
        "changes": words.pattern(
            "Against this plan {wider} tensors are wider, {narrower} narrower, {other} stored otherwise."
        ),
        "times": words.pattern("{number}×"),  # noqa: RUF001 - a factor
        "times_plan": words.pattern("{share} this plan"),
        "best_uniform": words.pattern("the loss of the best uniform format at no more bytes"),
        "no_uniform": words.pattern("no uniform format is as small"),
        "knee": words.pattern("knee"),
        "own": words.pattern("nearest to this plan"),
        "map": words.pattern("Bits of every tensor at {size}"),
        "light": words.pattern("Light"),
        "dark": words.pattern("Dark"),
        "keys": words.pattern("Arrow keys move from cell to cell"),
        "sort": words.pattern("Sort by this column"),
    }
