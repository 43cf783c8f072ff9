"""Figures of one tensor: its weights and activations, with the grid that they are rounded to."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from qplan.explore.stored import StoredGrid, Weights
from qplan.explore.style import INK, PLAN, SOFT, UNIFORM, quiet, short
from qplan.formats import QuantFormat
from qplan.report import notation

_BINS = 121
_MOST_LINES = 33
"""Grid lines that can be told apart; of a finer grid only so many are drawn."""


def weight_histogram(tensor: str, weight: Weights, grid: StoredGrid) -> Figure:
    """Weights of a tensor beside the grids that they are rounded to.

    Left: the weights in their own units, with the grids of the finest, a middle and the coarsest block below. Right:
    every weight in steps of its own block's grid, where the format's values are the whole numbers.
    """
    figure = Figure(figsize=(11.0, 4.0), layout="constrained")
    left, right = figure.subplots(1, 2)
    _density(left, weight.ravel(), "weight")
    _rugs(left, grid)
    left.set_title(f"{short(tensor)}: {weight.shape[0]} x {weight.shape[1]} weights", loc="left")
    steps = grid.steps(weight).ravel()
    half = 1 << (grid.format.bits - 1)
    edges = np.linspace(-half - 1.5, half + 0.5, _BINS)
    right.hist(np.clip(steps, edges[0], edges[-1]), bins=edges, color=PLAN, zorder=2)
    stride = max(1, 2 * half // _MOST_LINES)
    for value in range(-half, half, stride):
        right.axvline(value, color=UNIFORM, linewidth=0.9, alpha=0.75, zorder=3)
    right.set_xlabel(f"weight, steps of its block's grid ({grid.format}: {-half} to {half - 1})")
    right.set_ylabel("weights")
    right.xaxis.set_major_locator(MaxNLocator(integer=True))
    error = float(np.sqrt(np.mean((grid.values - weight) ** 2)))
    ratio = float(np.sqrt(np.mean(weight**2)) / error) if error else np.inf
    title = (
        f"in steps of {grid.format}: error {notation.loss(error)} rms, {20 * np.log10(ratio):.1f} dB below the weights"
    )
    right.set_title(title, loc="left", fontsize=11)
    quiet(right, "y")
    return figure


def activation_histogram(tensor: str, inputs: NDArray[np.float32]) -> Figure:
    """Activations that a tensor multiplies, with the int8 grid that MNN rounds them to under memory low.

    The grid is symmetric, 127 steps to a token's largest feature: one large feature leaves few steps to all others.
    Left: values in their own units, with the grids of the token of the smallest, a middle and the largest scale. Right:
    every value in steps of its token's grid.

    Args:
        tensor: whose input it is.
        inputs: ``[tokens, in_features]``.
    """
    figure = Figure(figsize=(11.0, 4.0), layout="constrained")
    left, right = figure.subplots(1, 2)
    scale = np.abs(inputs).max(axis=1) / 127
    kept = scale > 0
    _density(left, inputs.ravel(), "activation")
    bottom = left.get_ylim()[0]
    order = np.sort(scale[kept])
    for row, (name, size) in enumerate(_three(order)):
        _rug(
            left,
            np.arange(-127, 128, 8) * size,
            bottom,
            row,
            f"{name} token: {127 * size:.3g} at most, step {size:.2g}",
        )
    left.legend(loc="upper right", fontsize=8.5, frameon=False)
    left.set_title(f"{short(tensor)}: inputs of {len(inputs):,} tokens, {inputs.shape[1]} features", loc="left")
    steps = (inputs[kept] / scale[kept, None]).ravel()
    right.hist(steps, bins=np.arange(-127.5, 128.5, 1.0), color=PLAN, zorder=2)
    right.set_yscale("log")
    inside = float(np.mean(np.abs(steps) < 0.5))
    for share, colour in ((0.5, INK), (0.9, UNIFORM)):
        reach = float(np.quantile(np.abs(steps), share))
        for sign in (-1, 1):
            label = f"{share:.0%} of values within {reach:.1f} steps" if sign > 0 else None
            right.axvline(sign * reach, color=colour, linewidth=1.2, linestyle=(0, (4, 3)), label=label, zorder=3)
    right.legend(loc="upper right", fontsize=8.5, framealpha=0.9, edgecolor="none")
    right.set_xlabel("activation, steps of its token's int8 grid (-127 to 127)")
    right.set_ylabel("values, logarithmic")
    right.set_title(f"in steps: {notation.percent(inside)} round to 0", loc="left", fontsize=11)
    quiet(right, "y")
    return figure


def channel_profile(tensor: str, rms: NDArray[np.float64]) -> Figure:
    """Root mean square of every input feature of a tensor, sorted: how far a few stand out.

    Args:
        tensor: whose input it is.
        rms: ``[in_features]``, activation units.
    """
    figure = Figure(figsize=(7.6, 3.2), layout="constrained")
    axes = figure.subplots()
    order = np.sort(rms)[::-1]
    axes.plot(np.arange(1, len(order) + 1), order, color=PLAN, linewidth=1.8)
    middle = float(np.median(order))
    axes.axhline(middle, color=SOFT, linewidth=1, linestyle=(0, (4, 3)))
    axes.annotate(
        f"median {middle:.3g}", (len(order), middle), (0, 4), textcoords="offset points", ha="right", color=SOFT
    )
    top = (
        f"largest {order[0]:.3g}, {notation.ratio(order[0] / middle)} the median"
        if middle
        else f"largest {order[0]:.3g}"
    )
    axes.annotate(top, (1, order[0]), (8, -4), textcoords="offset points", color=INK)
    axes.set_yscale("log")
    axes.set_xlabel("input feature, by size")
    axes.set_ylabel("rms, activation units")
    axes.set_title(f"{short(tensor)}: size of its input features", loc="left")
    quiet(axes)
    return figure


def _density(axes: Axes, values: NDArray[np.float32], what: str) -> None:
    reach = float(np.abs(values).max()) or 1.0
    axes.hist(values, bins=np.linspace(-reach, reach, _BINS), color=PLAN, zorder=2)
    axes.set_yscale("log")
    top = axes.get_ylim()[1]
    axes.set_ylim(0.5 / (top / 0.5) ** 0.3, top * (top / 0.5) ** 0.35)
    axes.set_yticks([tick for tick in axes.get_yticks() if 1 <= tick <= top], minor=False)
    axes.set_xlabel(what)
    axes.set_ylabel(f"{what}s, logarithmic")
    quiet(axes, "y")


def _rugs(axes: Axes, grid: StoredGrid) -> None:
    """The grids of three blocks, below the histogram."""
    fmt = grid.format
    flat, zeros = grid.scale.ravel(), grid.zero.ravel()
    order = np.argsort(flat, kind="stable")
    half = 1 << (fmt.bits - 1)
    integers = np.arange(-half, half, max(1, 2 * half // _MOST_LINES))
    bottom = axes.get_ylim()[0]
    for row, (name, place) in enumerate((("finest", 0), ("middle", len(order) // 2), ("coarsest", len(order) - 1))):
        index = order[place]
        label = f"{name} {_blocks(fmt)}: step {flat[index]:.2g}"
        _rug(axes, integers * flat[index] + zeros[index], bottom, row, label)
    axes.legend(loc="upper right", fontsize=8.5, frameon=False)


def _blocks(fmt: QuantFormat) -> str:
    return f"block of {fmt.block}" if fmt.block else "row"


def _rug(axes: Axes, places: NDArray[np.floating], bottom: float, row: int, label: str) -> None:
    """Ticks below the histogram, three rows of them."""
    colour = (PLAN, INK, UNIFORM)[row]
    top = 0.5
    at = bottom * (top / bottom) ** ((row + 0.5) / 3)
    axes.plot(places, np.full(len(places), at), marker="|", markersize=9, linestyle="none", color=colour, label=label)


def _three(order: NDArray[np.floating]) -> tuple[tuple[str, float], ...]:
    return ("smallest", float(order[0])), ("middle", float(order[len(order) // 2])), ("largest", float(order[-1]))
