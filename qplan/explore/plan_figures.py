"""Figures of plans and of what the engine measured."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from matplotlib.colors import SymLogNorm
from matplotlib.figure import Figure

from qplan.explore.style import INK, PLAN, SOFT, THIRD, UNIFORM, log_nats, quiet
from qplan.report import figures, notation
from qplan.report.grid import grid_of
from qplan.run.token_losses import Losses, TokenLosses

if TYPE_CHECKING:
    from qplan.explore.plan import PlanView

_FLOOR_NATS = 1e-7
"""Losses below this, those of halves, are rounding of float32."""


def diff_maps(before: PlanView, after: PlanView) -> Figure:
    """Change of every tensor's width and loss from one plan to another, layers x tensors.

    Left: bits per weight, after minus before. Right: nats per token, after minus before.
    """
    table = before.table
    grid = grid_of(table.model.tensors)
    changed = before.diff(after).set_index("tensor")
    old, new = before.plan.formats, after.plan.formats

    def bits(names: Sequence[str]) -> float:
        return float(sum(new[n].bits - old[n].bits for n in names)) / len(names) if names else math.nan

    def nats(names: Sequence[str]) -> float:
        return float(sum(changed["loss_nats"].get(n, 0.0) for n in names)) if names else math.nan

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
    figure.suptitle(f"{before.name} → {after.name}", x=0.01, ha="left", fontsize=12)
    left.set_title("bits per weight", loc="left", fontsize=11)
    right.set_title("loss of each tensor alone", loc="left", fontsize=11)
    return figure


def strip_of_plans(views: Sequence[PlanView]) -> Figure:
    """Maps of plans of one run, small ones first, side by side: bits per weight, layers across."""
    table = views[0].table
    grid = grid_of(table.model.tensors)
    rows = len(grid.kinds) + len(grid.apart)
    across = min(len(views), 2 if len(grid.layers) > 12 else 4)
    figure, every = figures.grid_axes(grid, rows, -(-len(views) // across), across)
    for axes, view in zip(every, views, strict=False):
        figures.draw_plan(axes, grid, view.plan)
        told = f"{notation.size(view.total_bytes)}, {view.bits_per_weight:.2f} bpw"
        axes.set_title(f"{told}\nKL {notation.loss(view.predicted_nats)} nats", loc="left", fontsize=10)
    for axes in every[len(views) :]:
        axes.set_visible(False)
    figures.legend_of_bits(figure, grid, [view.plan for view in views])
    return figure


def predictions(frame: pd.DataFrame) -> Figure:
    """Predicted against measured loss of whole models, nats per token, both logarithmic; the line is equality.

    Losses below 1e-7 nats, those of fp16, are float32 rounding and left out.

    Args:
        frame: of `qplan.explore.run.Run.verification`.
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
        axes.annotate(str(row.budget), place, (9, -11), textcoords="offset points", fontsize=9, color=INK)
    axes.set_xlabel("expected KL to FP32, nats/token")
    axes.set_ylabel("measured on the engine, nats/token")
    axes.set_title("What was expected against what the engine does", loc="left")
    axes.set_aspect("equal")
    quiet(axes)
    axes.legend(loc="upper left", fontsize=8.5, facecolor="white", framealpha=0.9, edgecolor="none")
    return figure


def tokens_along_text(
    own: TokenLosses, others: Mapping[str, Losses], memory: str, *, row: int, first: int, count: int
) -> Figure:
    """KL of one sequence's tokens to FP32, nats, with the text below; of a plan, and of uniform models for comparison.

    Args:
        own: of the plan.
        others: of uniform models on the same text, by name.
        memory: setting of the engine.
        row: sequence.
        first: token of it.
        count: how many tokens.
    """
    texts = own.tokens[row][first : first + count]
    places = np.arange(len(texts))
    figure = Figure(figsize=(min(16.0, max(7.6, 1.4 + 0.2 * len(texts))), 4.2), layout="constrained")
    axes = figure.subplots()
    mine = own.kl_nats[memory][row, first : first + count]
    floor = max(float(own.kl_nats[memory].mean()) / 300, 1e-9)
    for color, (name, losses) in zip((UNIFORM, THIRD), others.items(), strict=False):
        values = np.maximum(losses[row, first : first + count], floor)
        axes.plot(places, values, color=color, marker=".", linewidth=1, label=f"uniform {name}", zorder=3)
    shown = np.maximum(mine, floor)
    axes.plot(places, shown, color=PLAN, marker="o", markersize=7, linewidth=2.2, label="plan", zorder=4)
    mean = float(own.kl_nats[memory].mean())
    axes.axhline(
        mean, color=INK, linewidth=1, linestyle=(0, (4, 3)), label=f"plan, mean of all tokens: {notation.loss(mean)}"
    )
    axes.set_yscale("log")
    axes.set_ylim(bottom=floor)
    log_nats(axes, "y")
    axes.set_xticks(places, [_visible(text) for text in texts], rotation=90, fontsize=8, family="monospace")
    axes.set_xlim(-0.7, len(texts) - 0.3)
    axes.tick_params(axis="x", length=0)
    axes.set_ylabel(f"KL at memory {memory}, nats")
    title = f"KL of the next token after each of {len(texts)} tokens (sequence {row}, from token {first})"
    axes.set_title(title, loc="left")
    quiet(axes, "y")
    figure.legend(loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    return figure


def layers_figure(frame: pd.DataFrame, title: str) -> Figure:
    """KL of what the head reads after more and more layers, nats per token, one line per model.

    Args:
        frame: of `qplan.explore.run.Run.error_by_layer`; several may be concatenated.
        title: of the figure.
    """
    figure = Figure(figsize=(7.6, 4.0), layout="constrained")
    axes = figure.subplots()
    looks = itertools.cycle(itertools.product(("-", "--", ":", "-."), (PLAN, UNIFORM, THIRD, INK)))
    models = list(frame.groupby("model", sort=False))
    for (name, own), (style, color) in zip(models, looks, strict=False):
        axes.plot(own["layers"], own["kl_nats"], marker="o", linestyle=style, color=color, label=str(name), zorder=3)
    log_nats(axes, "y")
    axes.set_xticks(sorted(frame["layers"].unique()))
    axes.set_xlabel("layers that ran before the head")
    axes.set_ylabel("KL to FP32 at that depth, nats/token")
    axes.set_title(title, loc="left")
    quiet(axes)
    if len(models) > 1:
        axes.legend(frameon=False)
    return figure


def _visible(text: str) -> str:
    """A token as a label: blanks and line ends shown, dollars kept from being mathematics."""
    shown = text.replace("\n", "⏎").replace("\t", "⇥").replace(" ", "·").replace("$", r"\$")
    return shown if len(shown) <= 14 else shown[:13] + "…"
