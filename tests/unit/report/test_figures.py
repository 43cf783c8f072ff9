from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace

import pytest
from matplotlib.figure import Figure

from qplan.errors import InputError
from qplan.report import figures
from tests.support.invented_run import Run, make_run, small_run


@pytest.fixture(name="small")
def _small() -> Run:
    return small_run()


EVERY: dict[str, Callable[[Run], Figure]] = {
    "plan_map": lambda run: figures.plan_map(run.table, run.plan),
    "loss_heatmap": lambda run: figures.loss_heatmap(run.table, "int4"),
    "sensitivity_bars": lambda run: figures.sensitivity_bars(run.table, "int4", top=5),
    "predicted_vs_measured": lambda run: figures.predicted_vs_measured(run.plan, run.verification),
    "sizes_speeds": lambda run: figures.sizes_speeds(run.plan, run.verification),
}


@pytest.mark.parametrize("name", EVERY)
def test_figures_draw(small: Run, name: str) -> None:
    figure = EVERY[name](small)
    assert isinstance(figure, Figure)
    figure.savefig(io.BytesIO())


def test_unmeasured_models_and_zero_losses_draw(small: Run) -> None:
    quiet = replace(small.table, measurements=tuple(replace(m, kl_nats=0.0) for m in small.table.measurements))
    plan = replace(small.plan, uniform=(), predicted_nats=0.0)
    for figure in (
        figures.loss_heatmap(quiet, "int8"),
        figures.predicted_vs_measured(plan, None),
        figures.sizes_speeds(plan, None),
        figures.plan_map(make_run(1).table, make_run(1).plan),
    ):
        figure.savefig(io.BytesIO())


def test_bars_are_the_most_sensitive(small: Run) -> None:
    axes = figures.sensitivity_bars(small.table, "int4", top=5).axes[0]
    assert len(axes.get_yticklabels()) == 5


def test_a_format_that_was_not_measured(small: Run) -> None:
    with pytest.raises(InputError, match="choose from fp16, int8, int6, int4"):
        figures.loss_heatmap(small.table, "int2")
