"""Figures for notebooks and papers. Each returns a matplotlib Figure and leaves pyplot's state alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import BoundaryNorm, LinearSegmentedColormap, ListedColormap, LogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray

from qplan.errors import InputError
from qplan.report import notation
from qplan.report.grid import Grid, LossTable, grid_of, heat_scale, loss_table
from qplan.report.literal import figure_text
from qplan.report.palette import BITS, HEAT_LIGHT, text_on
from qplan.report.plan_map import mean_bits
from qplan.run.plan import Plan, PlannedTensor
from qplan.run.table import SensitivityTable

_MISSING_INK = "#8a8f98"
_DIGITS_IN, _LABELS_IN = 0.19, 1.6
"""Inches that two digits take, and inches that the labels beside a grid take."""
_LOSS = LinearSegmentedColormap.from_list("qplan_loss", HEAT_LIGHT)


def plan_map(table: SensitivityTable, plan: Plan) -> Figure:
    """Bits of every tensor: kinds down, layers across, the head in the last row."""
    grid = grid_of(table.model.planned)
    figure, (axes,) = grid_axes(grid, len(grid.kinds) + len(grid.apart))
    draw_plan(axes, grid, plan)
    legend_of_bits(figure, grid, (plan,))
    axes.set_title(
        figure_text(f"{plan.budget}: {plan.mean_bits:.2f} bits on average, {notation.size(plan.files.total)}"),
        loc="left",
    )
    return figure


def draw_plan(axes: Axes, grid: Grid, plan: Plan) -> None:
    """Draw the bits of every tensor on axes of `grid_axes`, with numbers where cells have room for them."""
    planned = {tensor.name: tensor for tensor in plan.tensors}

    def bits(names: Sequence[str]) -> float:
        tensors: list[PlannedTensor] = [planned[name] for name in names]
        return mean_bits(tensors) if tensors else math.nan

    widths = sorted(BITS)
    edges = [1.0, *((a + b) / 2 for a, b in pairwise(widths)), 40.0]
    values = matrix(grid, bits)
    axes.imshow(
        values, cmap=ListedColormap([BITS[w] for w in widths]), norm=BoundaryNorm(edges, len(widths)), aspect="auto"
    )
    for (row, column), value in np.ndenumerate(values):
        if not math.isnan(value) and _has_room(axes, grid):
            ink = text_on(BITS[min(widths, key=lambda w: abs(w - value))])
            axes.text(column, row, f"{value:.3g}", ha="center", va="center", color=ink, fontsize=8)


def legend_of_bits(figure: Figure, grid: Grid, plans: Sequence[Plan]) -> None:
    """Add a legend for the colors of `draw_plan`, if cells are too narrow for numbers."""
    if not _has_room(figure.axes[0], grid):
        widths = sorted({tensor.format.bits for plan in plans for tensor in plan.tensors})
        handles = [Patch(color=BITS[bits], label=f"{bits} bits") for bits in widths]
        figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False)


def _has_room(axes: Axes, grid: Grid) -> bool:
    """Whether a cell is wide enough for two digits."""
    place, figure = axes.get_gridspec(), axes.figure
    across = 1 if place is None else place.ncols
    return (figure.get_figure(root=True).get_figwidth() - _LABELS_IN) / across >= _DIGITS_IN * len(grid.layers)


def loss_heatmaps(table: SensitivityTable, formats: Sequence[str], columns: int = 1) -> Figure:
    """Loss of every tensor, nats per token, a map per format on a scale that all formats share, in ``columns`` columns.

    Raises:
        InputError: a format that was not measured.
    """
    losses = loss_table(table)
    for fmt in formats:
        _check_column(losses, fmt)
    grid, scale = grid_of(table.model.planned), heat_scale(losses)
    low, high = (1e-12, 1e-11) if scale is None else (scale.low, max(scale.high, scale.low * 1.01))
    norm = LogNorm(low, high, clip=True)
    down = len(grid.kinds) + len(grid.apart)
    columns = min(columns, len(formats))
    figure, every = grid_axes(grid, down, -(-len(formats) // columns), columns)
    for axes, fmt in zip(every, formats, strict=False):

        def nats(names: Sequence[str], fmt: str = fmt) -> float:
            cells = [losses.losses[name][fmt].kl_nats for name in names if fmt in losses.losses[name]]
            return max(sum(cells), low) if cells else math.nan

        values = matrix(grid, nats)
        image = axes.imshow(values, cmap=_LOSS, norm=norm, aspect="auto")
        _mark_missing(axes, grid, values)
        axes.set_title(f"Loss of one tensor at a time in {fmt}" if len(formats) == 1 else fmt, loc="left")
    for axes in every[len(formats) :]:
        axes.set_visible(False)
    if len(formats) > 1:
        figure.suptitle("Loss of one tensor at a time", x=0.01, ha="left", fontsize=12)
    figure.colorbar(image, ax=list(every), label=f"loss at memory {table.goal}, nats/token", pad=0.02)
    return figure


def _mark_missing(axes: Axes, grid: Grid, values: NDArray[np.float64]) -> None:
    """Draw a dash in the cells of tensors that were not measured in a format."""
    there = matrix(grid, lambda names: float(bool(names)))
    for row, column in zip(*np.nonzero(np.isnan(values) & (there > 0)), strict=True):
        axes.text(column, row, notation.MISSING, ha="center", va="center", color=_MISSING_INK, fontsize=9)


def _check_column(losses: LossTable, fmt: str) -> None:
    if fmt not in losses.formats:
        msg = f"format {fmt!r} was not measured; choose from {', '.join(losses.formats)}"
        raise InputError(msg)


def matrix(grid: Grid, value: Callable[[Sequence[str]], float]) -> NDArray[np.float64]:
    """A value for every cell of a grid ``[kinds + tensors apart, layers]``, NaN where there is none."""
    rows = [[value(grid.cells.get((kind, layer), ())) for layer in grid.layers] for kind in grid.kinds]
    rows += [[value((name,)), *[math.nan] * (len(grid.layers) - 1)] for name in grid.apart]
    return np.array(rows, dtype=np.float64).reshape(len(rows), -1)


def grid_axes(grid: Grid, rows: int, down: int = 1, across: int = 1) -> tuple[Figure, Sequence[Axes]]:
    """Axes for ``down`` x ``across`` grids of ``rows`` rows, labeled on the left and below."""
    columns = max(len(grid.layers), 1)
    size = (min(16.0, _LABELS_IN + across * (0.8 + 0.42 * columns)), down * (0.9 + 0.3 * rows))
    figure = Figure(figsize=size, layout="constrained")
    every: list[Axes] = list(figure.subplots(down, across, sharex=True, sharey=True, squeeze=False).flat)
    stride = next(s for s in (1, 2, 5, 10, 20, 50) if s * (size[0] - _LABELS_IN) / across / columns >= 0.3 or s == 50)
    for index, axes in enumerate(every):
        kinds = (*grid.kinds, *(name.rpartition(".")[2] for name in grid.apart))
        axes.set_yticks(range(rows), [figure_text(kind) for kind in kinds])
        axes.set_xticks(range(0, len(grid.layers), stride), [str(layer) for layer in grid.layers[::stride]])
        if index // across == down - 1:
            axes.set_xlabel("layer")
        axes.set_xticks(np.arange(columns + 1) - 0.5, minor=True)
        axes.set_yticks([*(np.arange(rows + 1) - 0.5), len(grid.kinds) - 0.5], minor=True)
        axes.grid(which="minor", color="white", linewidth=1.5 if columns <= 48 else 0.4)
        axes.tick_params(which="both", length=0)
        axes.spines[:].set_visible(False)
    return figure, every
