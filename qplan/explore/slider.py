"""A slider over budgets that solves and draws the plan again; a static picture of several budgets elsewhere."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from qplan.explore.opened import OpenedRun
from qplan.explore.plan import PlanView
from qplan.explore.solving import ANY_NATS
from qplan.report import figures, notation
from qplan.report.grid import grid_of

STOPS = 33
"""Budgets on the slider, in equal ratios between the smallest plan and the one with the least loss."""
_SHOWN = 4
"""Budgets in the static picture."""
_DPI = 96


class BudgetSlider:
    """What a notebook shows for a cell that ends in ``run.slider()``.

    Front ends with ipywidgets show the slider; all others (a page made by nbconvert, a viewer, a notebook without the
    widgets' package) show one picture with the plans of four budgets along it. Both come from the same solver calls.
    """

    def __init__(self, run: OpenedRun, **rules: Any) -> None:  # noqa: ANN401 - those of `solve`
        """Find the range of budgets.

        Args:
            run: the run whose table is solved.
            rules: keyword arguments of `qplan.explore.opened.OpenedRun.solve`.

        Raises:
            InfeasibleError: the rules allow no plan of any size.
        """
        self.run, self.rules = run, rules
        best = run.solve(None, **rules)
        smallest = run.solve(None, **{**rules, "objective": "smallest", "max_kl": ANY_NATS})
        ends = smallest.total_bytes, max(best.total_bytes, smallest.total_bytes)
        self.budgets: tuple[int, ...] = tuple(dict.fromkeys(int(np.ceil(b)) for b in np.geomspace(*ends, STOPS)))
        """Bytes, ascending."""
        self._solved: dict[int, PlanView] = {}

    def plan_at(self, budget: int) -> PlanView:
        """The best plan of at most ``budget`` bytes; solved once."""
        if budget not in self._solved:
            self._solved[budget] = self.run.solve(budget, **self.rules, name=notation.size(budget))
        return self._solved[budget]

    def figure(self, budgets: Sequence[int] | None = None) -> Figure:
        """Maps of the plans at budgets in bytes, with their losses; at four along the slider for None."""
        stops = budgets or [
            self.budgets[i] for i in np.linspace(0, len(self.budgets) - 1, _SHOWN + 2).astype(int)[1:-1]
        ]
        return strip_of_plans([self.plan_at(budget) for budget in stops])

    def widget(self) -> Any:  # noqa: ANN401 - an ipywidgets.VBox, which has no stubs
        """The slider with its picture below.

        Raises:
            ModuleNotFoundError: ipywidgets is not installed.
        """
        import ipywidgets  # noqa: PLC0415 - optional

        middle = self.budgets[len(self.budgets) // 2]
        slider = ipywidgets.SelectionSlider(
            options=[(notation.size(budget), budget) for budget in self.budgets],
            value=middle,
            description="files that ship",
            continuous_update=False,
            style={"description_width": "initial"},
            layout={"width": "620px"},
        )
        picture = ipywidgets.Image(format="png", layout={"max_width": "100%", "align_self": "flex-start"})
        words = ipywidgets.HTML()

        def draw(budget: int) -> None:
            view = self.plan_at(budget)
            words.value = (
                f"{notation.size(view.total_bytes)}, {view.bits_per_weight:.2f} bits per weight, predicted KL "
                f"<b>{notation.loss(view.predicted_nats)}</b> nats/token, head {view.head_format}"
            )
            picture.value = png_of(self.figure([budget]))

        slider.observe(lambda change: draw(change["new"]), names="value")
        draw(middle)
        return ipywidgets.VBox([slider, words, picture])

    def _repr_mimebundle_(self, **_: object) -> dict[str, Any]:
        """The picture, and the widget for those that can show it."""
        bundle: dict[str, Any] = {"text/plain": repr(self), "image/png": png_of(self.figure())}
        try:
            widget = self.widget()
        except ModuleNotFoundError:
            return bundle
        view = "application/vnd.jupyter.widget-view+json"
        return bundle | {view: widget._repr_mimebundle_()[view]}  # noqa: SLF001 - IPython's protocol

    def __repr__(self) -> str:
        """Show the range of budgets."""
        low, high = notation.size(self.budgets[0]), notation.size(self.budgets[-1])
        return f"Plans from {low} to {high}, {len(self.budgets)} budgets"


def strip_of_plans(views: Sequence[PlanView]) -> Figure:
    """Maps of plans of one run, small ones first, side by side: bits per weight, layers across."""
    table = views[0].table
    grid = grid_of(table.model.planned)
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


def png_of(figure: Figure) -> bytes:
    """A figure as PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=_DPI)
    return buffer.getvalue()
