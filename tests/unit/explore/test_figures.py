"""Every figure draws, with units, and leaves pyplot alone."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from qplan.errors import InputError
from qplan.explore import Run
from qplan.explore.stored import channel_rms, read_grid
from qplan.explore.table import SensitivityView
from qplan.formats import QuantFormat
from qplan.report import notation
from tests.support.invented_run import SPECIMEN, untied_run

FIGURES: dict[str, tuple[Callable[[Run], Figure], str]] = {
    "losses": (lambda run: run.plot_losses(), "nats/token"),
    "losses of one": (lambda run: run.plot_losses("int4", memory="normal"), "memory normal"),
    "table": (lambda run: run.table.plot(["int8", "int4"]), "nats/token"),
    "ranking": (lambda run: run.plot_ranking("int4", top=5), "nats/token"),
    "sqnr": (lambda run: run.plot_sqnr(), "dB"),
    "frontier": (lambda run: run.plot_frontier(), "MB"),
    "predictions": (lambda run: run.plot_predictions(), "nats/token"),
    "plan": (lambda run: run.plan("int8").plot(), "layer"),
    "diff": (lambda run: run.plan("int8").plot_diff(run.solve("int4")), "bits per weight"),
    "same": (lambda run: run.plan("int8").plot_diff(run.plan("int8")), "bits per weight"),
    "weights": (lambda run: run.plot_weights("1.mlp.down_proj", "int4"), "steps"),
    "channels": (lambda run: run.plot_channels("1.mlp.down_proj"), "rms"),
    "tokens": (lambda run: run.plot_tokens("int8"), "nats"),
    "some tokens": (lambda run: run.plot_tokens("int8", row=0, first=1, count=2, memory="normal"), "nats"),
    "layers": (
        lambda run: run.plot_layers(pd.DataFrame({"model": "a", "layers": [0, 1, 2], "kl_nats": [1e-3, 2e-3, 2e-3]})),
        "nats/token",
    ),
    "slider": (lambda run: run.slider().figure(), "layer"),
}


def words(figure: Figure) -> str:
    labels = [label for axes in figure.axes for label in (axes.get_xlabel(), axes.get_ylabel(), axes.get_title("left"))]
    return " ".join(labels)


@pytest.mark.parametrize("name", FIGURES)
def test_figures_draw_with_units(run: Run, name: str) -> None:
    draw, unit = FIGURES[name]
    figure = draw(run)
    assert isinstance(figure, Figure)
    figure.savefig(io.BytesIO(), dpi=40)
    assert unit in words(figure)


def test_a_ranking_is_sorted_and_marks_what_was_not_measured(run: Run) -> None:
    axes = run.plot_ranking("int4", top=5).axes[0]
    names = [label.get_text() for label in axes.get_yticklabels()]
    losses = run.table.wide()["int4"].nlargest(5)
    assert names == [name.removeprefix("model.layers.") for name in losses.index[::-1]]


def test_a_heat_map_has_a_dash_where_nothing_was_measured(run: Run) -> None:
    axes = run.plot_losses("int6").axes[0]
    assert [text.get_text() for text in axes.texts] == [notation.MISSING]
    assert not run.plot_losses("int8").axes[0].texts


def test_weights_are_drawn_on_their_own_grid(run: Run) -> None:
    table = run.table.table
    weight = run.weights(SPECIMEN)
    grid = read_grid(run.home, table, SPECIMEN, QuantFormat.parse("int4"))
    assert weight.shape == grid.dequantized.shape == (64, 192)
    steps = grid.steps(weight)
    assert np.abs(steps - grid.codes).max() <= 0.51
    assert np.abs(weight - grid.dequantized).max() <= 0.51 * grid.scale.max()
    assert channel_rms(run.home, table, SPECIMEN) == pytest.approx(np.arange(1, 193))


@pytest.mark.parametrize(
    ("draw", "told"),
    [
        (lambda run: run.plot_losses("int2"), "choose from fp16, int8, int6, int4"),
        (lambda run: run.plot_ranking("int2"), "choose from fp16, int8, int6, int4"),
        (lambda run: run.plot_weights("mlp.down_proj", "int4"), r"matches 2: model.layers.0.mlp.down_proj, "),
        (lambda run: run.plot_weights("1.mlp.down_proj", "int3"), "it has fp16, int8, int6, int4"),
        (lambda run: run.plot_weights("1.mlp.down_proj", "fp16"), "fp16 has no grid"),
        (lambda run: run.plot_channels("0.mlp.down_proj"), "folded has no config.json"),  # no moments: the model is run
        (lambda run: run.plot_tokens("int8", row=7), "sequences 0 to 1"),
        (lambda run: run.plot_tokens("int8", first=9), "tokens 0 to 3"),
        (lambda run: run.plot_tokens("int8", memory="x"), "this plan has low, normal"),
    ],
)
def test_errors_say_what_there_is(run: Run, draw: Callable[[Run], Figure], told: str) -> None:
    with pytest.raises(InputError, match=told):
        draw(run)


@pytest.mark.parametrize("name", ["plot_channels", "plot_activations"])
def test_an_embedding_has_no_inputs_to_draw(run: Run, name: str) -> None:
    untied = replace(run, table=SensitivityView(untied_run().table))
    with pytest.raises(InputError, match="has no inputs: an embedding multiplies nothing"):
        getattr(untied, name)("embed_tokens")


def test_any_number_of_models_gets_a_line_of_its_own(run: Run) -> None:
    frames = [pd.DataFrame({"model": f"m{i}", "layers": [0, 1], "kl_nats": [1e-3, 2e-3]}) for i in range(9)]
    lines = run.plot_layers(pd.concat(frames)).axes[0].get_lines()
    assert len({(line.get_color(), line.get_linestyle()) for line in lines}) == 9
