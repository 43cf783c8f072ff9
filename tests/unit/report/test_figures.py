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
    "loss_heatmap": lambda run: figures.loss_heatmaps(run.table, ("int4",)),
    "loss_heatmaps": lambda run: figures.loss_heatmaps(run.table, ("fp16", "int8", "int4"), columns=2),
}


@pytest.mark.parametrize("name", EVERY)
def test_figures_draw(small: Run, name: str) -> None:
    figure = EVERY[name](small)
    assert isinstance(figure, Figure)
    figure.savefig(io.BytesIO())


def test_unmeasured_models_and_zero_losses_draw(small: Run) -> None:
    quiet = replace(small.table, measurements=tuple(replace(m, kl_nats=0.0) for m in small.table.measurements))
    for figure in (
        figures.loss_heatmaps(quiet, ("int8",)),
        figures.plan_map(make_run(1).table, make_run(1).plan),
    ):
        figure.savefig(io.BytesIO())


def test_a_format_that_was_not_measured(small: Run) -> None:
    with pytest.raises(InputError, match="choose from fp16, int8, int6, int4"):
        figures.loss_heatmaps(small.table, ("int2",))
