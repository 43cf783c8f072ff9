"""Figures of plans and of what the engine measured."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.colors import SymLogNorm
from matplotlib.figure import Figure

from qplan.explore.style import INK, PLAN, SOFT, THIRD, UNIFORM, log_nats, quiet
from qplan.report import figures
from qplan.report.grid import grid_of
from qplan.report.literal import figure_text
from qplan.run.plan import Plan
from qplan.run.table import SensitivityTable

_FLOOR_NATS = 1e-7
"""Losses below this, those of fp16, are float32 rounding."""


def diff_maps(table: SensitivityTable, before: Plan, after: Plan, nats_by_tensor: Mapping[str, float]) -> Figure:
    """Change of every tensor's width and loss from one plan to another, layers x tensors.

    Left: bits per weight, after minus before. Right: nats per token, after minus before.

    Args:
        table: of the model that both plans are for.
        before: one plan.
        after: another.
        nats_by_tensor: change of a tensor's own loss, by name; tensors that are missing have no change.
    """
    grid = grid_of(table.model.planned)
    old, new = before.formats, after.formats

    def bits(names: Sequence[str]) -> float:
        return float(sum(new[n].bits - old[n].bits for n in names)) / len(names) if names else math.nan

    def nats(names: Sequence[str]) -> float:
        return float(sum(nats_by_tensor.get(n, 0.0) for n in names)) if names else math.nan

    figure, (left, right) = figures.grid_axes(grid, len(grid.kinds) + len(grid.apart), 1, 2)
    width = max(1.0, float(np.nanmax(np.abs(figures.matrix(grid, bits)))))
    image = left.imshow(figures.matrix(grid, bits), cmap="PuOr", vmin=-width, vmax=width, aspect="auto")
    figure.colorbar(image, ax=left, label="bits per weight, change", pad=0.02)
    for (row, column), value in np.ndenumerate(figures.matrix(grid, bits)):
        if value and not math.isnan(value) and len(grid.layers) <= 24:
            ink = "white" if abs(value) > 0.6 * width else INK
            left.text(column, row, f"{value:+.3g}", ha="center", va="center", fontsize=8, color=ink)
    values = figures.matrix(grid, nats)
    most = max(float(np.nanmax(np.abs(values))), 1e-12)
    norm = SymLogNorm(most / 100, vmin=-most, vmax=most)
    image = right.imshow(values, cmap="PuOr_r", norm=norm, aspect="auto")
    bar = figure.colorbar(image, ax=right, label="loss, nats/token, change", pad=0.02)
    bar.set_ticks([-most, -most / 10, 0, most / 10, most])
    bar.set_ticklabels([f"{v:+.1e}".replace("e-0", "e-") if v else "0" for v in bar.get_ticks()])
    left.set_title("bits per weight", loc="left", fontsize=11)
    right.set_title("loss of each tensor alone", loc="left", fontsize=11)
    return figure


def predictions(frame: pd.DataFrame) -> Figure:
    """Predicted against measured loss of whole models, nats per token, both logarithmic; the line is equality.

    Losses below 1e-7 nats, those of fp16, are float32 rounding and left out.

    Args:
        frame: from `qplan.explore.run.Run.verification`.
    """
    shown = frame.dropna(subset=["predicted_nats", "measured_nats"])
    emulated = frame.dropna(subset=["emulated_nats", "measured_nats"])
    emulated = emulated[emulated["ships"] & (emulated["path"] == "prefill")]
    figure = Figure(figsize=(6.4, 5.4), layout="constrained")
    axes = figure.subplots()
    groups = (
        (
            emulated[emulated["model"] != "plan"],
            "emulated_nats",
            UNIFORM,
            "s",
            "uniform, torch with the engine's arithmetic",
        ),
        (emulated[emulated["model"] == "plan"], "emulated_nats", PLAN, "s", "plan, torch with the engine's arithmetic"),
        (shown[shown["model"] != "plan"], "predicted_nats", UNIFORM, "o", "uniform, predicted from single tensors"),
        (shown[shown["model"] == "plan"], "predicted_nats", PLAN, "o", "plan, predicted from single tensors"),
    )
    ends: list[float] = []
    for rows, column, color, marker, label in groups:
        known = (rows[column] > _FLOOR_NATS) & (rows["measured_nats"] > _FLOOR_NATS)
        own = rows[known].drop_duplicates(["model", "memory", column])
        if own.empty:
            continue
        ends += [*own[column], *own["measured_nats"]]
        face = color if marker == "o" else "white"
        axes.scatter(
            own[column],
            own["measured_nats"],
            s=58,
            marker=marker,
            facecolor=face,
            edgecolor=color,
            linewidth=1.4,
            label=label,
            zorder=3 + (marker == "o"),
        )
    low, high = (min(ends) / 2, max(ends) * 2) if ends else (1e-4, 1e-2)
    axes.plot([low, high], [low, high], color=SOFT, linewidth=1, zorder=2)
    axes.set_xlim(low, high)
    axes.set_ylim(low, high)
    log_nats(axes, "x")
    log_nats(axes, "y")
    for row in shown[shown["model"] == "plan"].itertuples():
        place = (row.predicted_nats, row.measured_nats)
        axes.annotate(figure_text(str(row.budget)), place, (9, -11), textcoords="offset points", fontsize=9, color=INK)
    axes.set_xlabel("expected KL to FP32, nats/token")
    axes.set_ylabel("measured on the engine, nats/token")
    axes.set_title("What was expected against what the engine does", loc="left")
    axes.set_aspect("equal")
    quiet(axes)
    axes.legend(loc="upper left", fontsize=8.5, facecolor="white", framealpha=0.9, edgecolor="none")
    return figure


def layers_figure(frame: pd.DataFrame, title: str) -> Figure:
    """KL of what the head reads after more and more layers, nats per token, one line per model.

    Args:
        frame: from `qplan.explore.run.Run.error_by_layer`; several may be concatenated.
        title: the figure's title.
    """
    figure = Figure(figsize=(7.6, 4.0), layout="constrained")
    axes = figure.subplots()
    looks = itertools.cycle(itertools.product(("-", "--", ":", "-."), (PLAN, UNIFORM, THIRD, INK)))
    models = list(frame.groupby("model", sort=False))
    for (name, own), (style, color) in zip(models, looks, strict=False):
        axes.plot(
            own["layers"],
            own["kl_nats"],
            marker="o",
            linestyle=style,
            color=color,
            label=figure_text(str(name)),
            zorder=3,
        )
    log_nats(axes, "y")
    axes.set_xticks(sorted(frame["layers"].unique()))
    axes.set_xlabel("layers that ran before the head")
    axes.set_ylabel("KL to FP32 at that depth, nats/token")
    axes.set_title(figure_text(title), loc="left")
    quiet(axes)
    if len(models) > 1:
        axes.legend(frameon=False)
    return figure
