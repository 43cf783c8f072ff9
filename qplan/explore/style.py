"""Colors and axes that all figures of a run share. Color-blind safe: roles differ in lightness and in marker too."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from qplan.report import notation

INK, GRID, SOFT = "#17191d", "#e3e0da", "#6b7078"
PLAN, UNIFORM, THIRD = "#1f6f9f", "#c2571a", "#8a8f98"
ROLES = {"attention": ("#1f6f9f", "o"), "mlp": ("#d2842d", "s"), "head": ("#17191d", "D")}
"""Color and marker by role."""


def quiet(axes: Axes, grid: str = "both") -> None:
    """Keep only the left and bottom spines, and a light grid behind the data."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(SOFT)
    axes.tick_params(color=SOFT)
    if grid == "both":
        axes.grid(visible=True, color=GRID, linewidth=0.8)
    else:
        axes.grid(visible=True, axis="x" if grid == "x" else "y", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)


def log_nats(axes: Axes, which: str) -> None:
    """A logarithmic axis of losses, labeled at decades, and at 2 and 5 where it spans less than two."""
    if which == "x":
        axes.set_xscale("log")
    else:
        axes.set_yscale("log")
    axis: Axis = axes.xaxis if which == "x" else axes.yaxis
    low, high = axes.get_xlim() if which == "x" else axes.get_ylim()
    steps = (1.0,) if high / low > 60 else (1.0, 2.0, 5.0) if high / low > 12 else (1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0)
    axis.set_major_locator(LogLocator(10, steps, numticks=12))
    axis.set_major_formatter(FuncFormatter(lambda nats, _: notation.tick(nats)))
    axis.set_minor_formatter(NullFormatter())


def log_plain(axes: Axes) -> None:
    """A logarithmic vertical axis with 1, 2 and 5 of every decade written out."""
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(10, (1.0, 2.0, 5.0), numticks=12))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
