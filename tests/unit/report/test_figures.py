"""Figures for notebooks hold what they are drawn from, and leave pyplot alone."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from qplan.errors import InputError
from qplan.report import figures, notation
from qplan.report.grid import grid_of
from tests.support.invented_run import Run, make_run, small_run


@pytest.fixture(name="small")
def _small() -> Run:
    return small_run()


def drawn(figure: Figure) -> list[Axes]:
    """The axes with a grid on them, after everything was drawn."""
    figure.savefig(io.BytesIO())
    return [axes for axes in figure.axes if axes.images and axes.get_visible() and axes.get_label() != "<colorbar>"]


def cells(axes: Axes) -> NDArray[np.float64]:
    """The values of a grid ``[rows, layers]``, NaN where it is empty."""
    (image,) = axes.images
    array = image.get_array()
    assert array is not None
    return np.ma.filled(array.astype(np.float64), np.nan)


def words(axes: Axes) -> list[str]:
    """What is written into cells."""
    return [text.get_text() for text in axes.texts]


def test_a_plan_map_shows_the_bits_of_every_tensor(small: Run) -> None:
    (axes,) = drawn(figures.plan_map(small.table, small.plan))
    grid, shown = grid_of(small.table.model.tensors), cells(axes)
    bits = {name: fmt.bits for name, fmt in small.plan.formats.items()}
    for (kind, layer), names in grid.cells.items():
        assert shown[grid.kinds.index(kind), grid.layers.index(layer)] == np.mean([bits[name] for name in names])
    assert shown[-1, 0] == bits["lm_head"]
    assert np.isnan(shown[-1, 1:]).all()
    assert sorted(map(float, words(axes))) == sorted(shown[~np.isnan(shown)])
    assert [label.get_text() for label in axes.get_yticklabels()] == [*grid.kinds, "lm_head"]
    assert f"{small.plan.mean_bits:.2f} bits" in axes.get_title("left")


def test_heat_maps_show_the_losses_of_their_formats_on_one_scale(small: Run) -> None:
    formats = ("fp16", "int8", "int4")
    every = drawn(figures.loss_heatmaps(small.table, formats, columns=2))
    assert [axes.get_title("left") for axes in every] == list(formats)
    grid, losses = grid_of(small.table.model.tensors), small.table.kl(small.table.goal)
    low, high = every[0].images[0].get_clim()
    for axes, fmt in zip(every, formats, strict=True):
        shown = cells(axes)
        for (kind, layer), names in grid.cells.items():
            here = shown[grid.kinds.index(kind), grid.layers.index(layer)]
            assert here == pytest.approx(max(low, sum(losses[name][fmt] for name in names)))
        assert shown[-1, 0] == pytest.approx(max(low, losses["lm_head"][fmt]))
        assert axes.images[0].get_clim() == (low, high)
    every_loss = [loss for row in losses.values() for name, loss in row.items() if name in formats]
    assert min(every_loss) < low < np.median(every_loss) < high
    assert high == pytest.approx(max(every_loss), rel=0.02)


def test_a_dash_marks_what_was_not_measured(small: Run) -> None:
    kept = tuple(m for m in small.table.measurements if (m.tensor, m.format) != ("lm_head", "int6"))
    table = replace(small.table, measurements=kept)
    (axes,) = drawn(figures.loss_heatmaps(table, ("int6",)))
    assert words(axes) == [notation.MISSING]
    assert np.isnan(cells(axes)[-1, 0])


def test_losses_of_zero_get_the_faintest_color(small: Run) -> None:
    quiet = replace(small.table, measurements=tuple(replace(m, kl_nats=0.0) for m in small.table.measurements))
    (axes,) = drawn(figures.loss_heatmaps(quiet, ("int8",)))
    shown, (low, _) = cells(axes), axes.images[0].get_clim()
    assert (shown[~np.isnan(shown)] == low).all()


def test_a_single_layer_is_a_single_column() -> None:
    run = make_run(1)
    (axes,) = drawn(figures.plan_map(run.table, run.plan))
    assert cells(axes).shape == (8, 1)
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0"]


def test_a_format_that_was_not_measured(small: Run) -> None:
    with pytest.raises(InputError, match="choose from fp16, int8, int6, int4"):
        figures.loss_heatmaps(small.table, ("int2",))
