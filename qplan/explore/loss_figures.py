"""Figures of a sensitivity table: which tensors lose, in which formats, and how well SQNR predicts it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from qplan.explore.frames import format_frame
from qplan.explore.style import INK, ROLES, SOFT, log_nats, quiet
from qplan.formats import QuantFormat
from qplan.report import figures
from qplan.report.grid import loss_table
from qplan.report.literal import figure_text
from qplan.report.palette import BITS
from qplan.run.table import SensitivityTable
from qplan.tensors import short_name

_MAPS = 4
"""Heat maps that are drawn by default, at most."""


def loss_heatmaps(table: SensitivityTable, formats: str | Sequence[str] | None = None) -> Figure:
    """Layers x tensors, colored by the loss of one tensor at a time in nats per token; one scale for all formats.

    Args:
        table: losses, under the memory setting to draw.
        formats: one, several, or None for the integer formats of one block size, wide ones first, four at most.

    Raises:
        InputError: a format that was not measured; says which were.
    """
    chosen = [formats] if isinstance(formats, str) else list(formats or ()) or _telling(loss_table(table).formats)
    layers = len({spec.layer for spec in table.model.planned})
    return figures.loss_heatmaps(table, chosen, columns=2 if len(chosen) > 1 and layers <= 48 else 1)


def ranking(table: SensitivityTable, fmt: str, top: int = 20) -> Figure:
    """The ``top`` most sensitive tensors in one format, nats per token on a logarithmic axis, with 95 % intervals.

    Filled where the model was run with the format, hollow where the loss is an estimate from gradients.

    Raises:
        InputError: the format was not measured; says which were.
    """
    rows = format_frame(table, fmt).nlargest(top, "loss_nats").iloc[::-1].reset_index(drop=True)
    figure = Figure(figsize=(7.6, 1.1 + 0.23 * len(rows)), layout="constrained")
    axes = figure.subplots()
    floor = max(rows["loss_nats"].min() / 10, 1e-300)
    for role, (color, marker) in ROLES.items():
        for source in ("measured", "gradient"):
            own = rows[(rows["role"] == role) & (rows["source"] == source)]
            if own.empty:
                continue
            low = (own["loss_nats"] - own["low_nats"].clip(lower=floor)).clip(lower=0)
            axes.errorbar(
                own["loss_nats"],
                own.index,
                xerr=[low, own["high_nats"] - own["loss_nats"]],
                fmt=marker,
                markersize=6,
                color=color,
                markerfacecolor=color if source == "measured" else "white",
                elinewidth=1.3,
                label=f"{role}, {source}",
                zorder=3,
            )
    axes.set_yticks(range(len(rows)), [figure_text(short_name(name)) for name in rows["tensor"]], fontsize=8.5)
    axes.set_ylim(-0.7, len(rows) - 0.3)
    axes.set_xlabel(f"loss in {fmt} at memory {table.goal}, nats/token, with 95 % interval")
    log_nats(axes, "x")
    quiet(axes, "x")
    axes.tick_params(axis="y", length=0)
    axes.set_title(f"What {fmt} costs, one tensor at a time", loc="left")
    figure.legend(loc="outside lower center", ncols=4, frameon=False, fontsize=8.5)
    return figure


def loss_against_sqnr(table: SensitivityTable, formats: Sequence[str] | None = None) -> Figure:
    """Loss of the model in nats per token over the SQNR of a tensor's own output in dB, a point per tensor and format.

    Where points of the same SQNR lie far apart, the error of a tensor's output does not say what it costs the model.

    Raises:
        InputError: a format that was not measured; says which were.
    """
    chosen = list(formats or ()) or _telling(loss_table(table).formats, most=99)
    figure = Figure(figsize=(7.6, 5.0), layout="constrained")
    axes = figure.subplots()
    seen = pd.concat([format_frame(table, fmt).assign(asked=fmt) for fmt in chosen])
    seen = seen[np.isfinite(seen["sqnr_db"]) & (seen["loss_nats"] > 0)]
    for role, (_, marker) in ROLES.items():
        for fmt in chosen:
            own = seen[(seen["role"] == role) & (seen["asked"] == fmt)]
            axes.scatter(
                own["sqnr_db"],
                own["loss_nats"],
                marker=marker,
                s=34,
                facecolor=BITS[QuantFormat.parse(fmt).bits],
                edgecolor=INK,
                linewidth=0.5,
                alpha=0.92,
                zorder=3,
            )
    log_nats(axes, "y")
    quiet(axes)
    axes.set_xlabel("SQNR of the tensor's own output, dB")
    axes.set_ylabel(f"loss of the model at memory {table.goal}, nats/token")
    axes.set_title("Noise in a tensor's output against what it costs the model", loc="left")
    handles = [
        axes.scatter([], [], s=34, facecolor=BITS[QuantFormat.parse(f).bits], edgecolor=INK, linewidth=0.5, label=f)
        for f in chosen
    ]
    handles += [
        axes.scatter([], [], s=34, marker=marker, facecolor="white", edgecolor=SOFT, label=role)
        for role, (_, marker) in ROLES.items()
        if (seen["role"] == role).any()
    ]
    figure.legend(handles=handles, loc="outside right upper", frameon=False, fontsize=9)
    return figure


def _telling(formats: Sequence[str], most: int = _MAPS) -> list[str]:
    """The integer formats of one block size: those of others look the same."""
    parsed = [QuantFormat.parse(name) for name in formats if not QuantFormat.parse(name).is_float]
    blocks = {fmt.block: sum(other.block == fmt.block for other in parsed) for fmt in parsed}
    if not blocks:
        return list(formats[:most])
    block = max(blocks, key=lambda b: (blocks[b], b))
    return [fmt.name for fmt in parsed if fmt.block == block][-most:]
