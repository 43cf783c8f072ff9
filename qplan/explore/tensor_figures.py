"""Figures of one tensor: its weights and activations, with the grid that they are rounded to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from qplan.explore.stored import StoredGrid, Weights
from qplan.explore.style import INK, PLAN, SOFT, UNIFORM, log_plain, quiet
from qplan.report import notation
from qplan.report.literal import figure_text
from qplan.tensors import short_name

_BINS = 121
_MOST_LINES = 32
"""Most grid lines that can be told apart; of a finer grid no more are drawn."""
_EIGHTH = 8
"""Only every 8th value of an int8 grid is drawn."""


def weight_histogram(tensor: str, weight: Weights, grid: StoredGrid) -> Figure:
    """Weights of a tensor beside the grids that they are rounded to.

    Left: the weights in their own units, and below them the grids of the finest, a middle and the coarsest block.
    Right: every weight in steps of its own block's grid, where the format's values are the whole numbers.
    """
    figure, left, rug, right = _panels()
    _density(left, weight.ravel(), "weight")
    flat, zeros = grid.scale.ravel(), grid.zero.ravel()
    order = np.argsort(flat, kind="stable")
    levels, unit = grid.format.levels, "block" if grid.format.block else "row"
    stride = max(1, len(levels) // _MOST_LINES)
    integers = np.array(levels[::stride])
    places = (("finest", 0), ("middle", len(order) // 2), ("coarsest", len(order) - 1))
    found = [(f"{name} {unit}, step {flat[i]:.2g}", integers * flat[i] + zeros[i]) for name, i in _at(order, places)]
    _rugs(rug, found, f"weight, with the grids of three {unit}s" + _each(stride))
    name = figure_text(short_name(tensor))
    left.set_title(f"{name}: {weight.shape[0]} x {weight.shape[1]} weights", loc="left", fontsize=11)
    steps = grid.steps(weight).ravel()
    edges = np.linspace(levels[0] - 1.5, levels[-1] + 1.5, _BINS)
    right.hist(np.clip(steps, edges[0], edges[-1]), bins=list(edges), color=PLAN, zorder=2)
    for value in levels[::stride]:
        right.axvline(value, color=UNIFORM, linewidth=0.9, alpha=0.75, zorder=3)
    right.set_xlabel(f"weight, in steps of its {unit}'s grid" + _each(stride))
    right.set_ylabel("weights")
    right.xaxis.set_major_locator(MaxNLocator(integer=True))
    error = float(np.sqrt(np.mean((grid.dequantized - weight) ** 2)))
    ratio = float(np.sqrt(np.mean(weight**2)) / error) if error else np.inf
    below = notation.decibel(20 * np.log10(ratio))
    title = f"{grid.format}: error {notation.loss(error)} rms, {below} dB below the weights"
    right.set_title(title, loc="left", fontsize=11)
    quiet(right, "y")
    return figure


def activation_histogram(tensor: str, inputs: NDArray[np.float32]) -> Figure:
    """Activations that a tensor multiplies, with the int8 grid that MNN rounds them to under memory low.

    The grid is symmetric, 127 steps up to a token's largest feature: one large feature leaves few steps for all others.
    Left: values in their own units, and below them the grids of the token of the smallest, a middle and the largest
    scale. Right: every value in steps of its token's grid.

    Args:
        tensor: the tensor that multiplies it.
        inputs: ``[tokens, in_features]``.
    """
    figure, left, rug, right = _panels()
    scale = np.abs(inputs).max(axis=1) / 127
    kept = scale > 0
    _density(left, inputs.ravel(), "activation")
    order = np.sort(scale[kept])
    places = (("smallest", 0), ("middle", len(order) // 2), ("largest", len(order) - 1))
    grids = [(f"{name} token, step {s:.2g}", np.arange(-127, 128, _EIGHTH) * s) for name, s in _at(order, places)]
    _rugs(rug, grids, "activation, with the int8 grids of three tokens" + _each(_EIGHTH))
    title = f"{figure_text(short_name(tensor))}: inputs of {len(inputs):,} tokens, {inputs.shape[1]} features"
    left.set_title(title, loc="left", fontsize=11)
    steps = (inputs[kept] / scale[kept, None]).ravel()
    right.hist(steps, bins=list(np.arange(-127.5, 128.5)), color=PLAN, zorder=2)
    right.set_yscale("log")
    for share, color in ((0.5, INK), (0.9, UNIFORM)):
        reach = float(np.quantile(np.abs(steps), share))
        for sign in (-1, 1):
            label = f"{share:.0%} within {reach:.1f} steps" if sign > 0 else None
            right.axvline(sign * reach, color=color, linewidth=1.2, linestyle=(0, (4, 3)), label=label, zorder=3)
    right.legend(loc="upper left", fontsize=8.5, framealpha=0.9, edgecolor="none")
    right.set_xlabel("activation, in steps of its token's int8 grid")
    right.set_ylabel("activations, logarithmic")
    inside = notation.percent(float(np.mean(np.abs(steps) < 0.5)))
    right.set_title(f"int8 under memory low: {inside} round to 0", loc="left", fontsize=11)
    quiet(right, "y")
    return figure


def channel_profile(tensor: str, rms: NDArray[np.float64]) -> Figure:
    """Root mean square of every input feature of a tensor, sorted: how far a few stand out.

    Args:
        tensor: the tensor that multiplies it.
        rms: ``[in_features]``, activation units.
    """
    figure = Figure(figsize=(7.6, 3.2), layout="constrained")
    axes = figure.subplots()
    order, middle = np.sort(rms)[::-1], float(np.median(rms))
    axes.plot(np.arange(1, len(order) + 1), order, color=PLAN, linewidth=1.8)
    axes.axhline(middle, color=SOFT, linewidth=1, linestyle=(0, (4, 3)))
    end = (len(order), middle)
    axes.annotate(f"median {middle:.3g}", end, (0, 4), textcoords="offset points", ha="right", color=SOFT)
    more = f", {notation.ratio(order[0] / middle)} the median" if middle else ""
    axes.annotate(f"largest {order[0]:.3g}{more}", (1, order[0]), (8, -4), textcoords="offset points", color=INK)
    log_plain(axes)
    axes.set_xlabel("input feature, by size")
    axes.set_ylabel("rms, activation units")
    axes.set_title(f"{figure_text(short_name(tensor))}: size of its input features", loc="left")
    quiet(axes)
    return figure


def _panels() -> tuple[Figure, Axes, Axes, Axes]:
    """Make axes for a histogram, for grids below it, and for another histogram beside them."""
    figure = Figure(figsize=(11.0, 4.3), layout="constrained")
    shape = figure.add_gridspec(2, 2, height_ratios=(5, 1))
    left = figure.add_subplot(shape[0, 0])
    rug = figure.add_subplot(shape[1, 0], sharex=left)
    return figure, left, rug, figure.add_subplot(shape[:, 1])


def _density(axes: Axes, values: NDArray[np.float32], what: str) -> None:
    reach = float(np.abs(values).max()) or 1.0
    axes.hist(values, bins=list(np.linspace(-reach, reach, _BINS)), color=PLAN, zorder=2)
    axes.set_yscale("log")
    axes.set_ylabel(f"{what}s, logarithmic")
    axes.tick_params(labelbottom=False)
    quiet(axes, "y")


def _rugs(axes: Axes, grids: Sequence[tuple[str, NDArray[Any]]], label: str) -> None:
    """Draw three grids, a tick for each value."""
    for row, (_, values) in enumerate(grids):
        color = (PLAN, INK, UNIFORM)[row]
        axes.plot(values, np.full(len(values), row), "|", markersize=8, markeredgewidth=0.8, color=color, clip_on=False)
    axes.set_yticks(range(len(grids)), [name for name, _ in grids], fontsize=8.5)
    axes.set_ylim(len(grids) - 0.4, -0.6)
    axes.set_xlabel(label)
    quiet(axes, "x")
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)


def _at(order: NDArray[Any], places: Sequence[tuple[str, int]]) -> list[tuple[str, Any]]:
    return [(name, order[place]) for name, place in places]


def _each(stride: int) -> str:
    return "" if stride == 1 else f", every {stride}th value"
