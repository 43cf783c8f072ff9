from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor

from qplan.cost.training import LAYER_HELD_OUT
from qplan.formats import QuantFormat
from qplan.rounding import IntTensor, rtn
from qplan.rounding.codes import extreme_levels, levels_of
from qplan.tuning import layer_training
from qplan.tuning.layer_training import Example, LayerTraining, LearnedGrid
from qplan.tuning.trained import TrainedGrid

FORMATS = [QuantFormat(2, 32), QuantFormat(4, 64), QuantFormat(8, 0), QuantFormat(3, 32, symmetric=True)]


def a_tensor(fmt: QuantFormat = QuantFormat(3, 32)) -> IntTensor:  # noqa: B008 - a frozen value
    stored = rtn(weights(), fmt)
    assert isinstance(stored, IntTensor)
    return stored


def a_moved(fmt: QuantFormat) -> LearnedGrid:
    grid, generator = LearnedGrid(a_tensor(fmt)), torch.Generator().manual_seed(1)
    with torch.no_grad():
        grid.moved.copy_(torch.randn(grid.moved.shape, generator=generator))
        for value in grid.parameters.values():
            value.copy_(torch.randn(value.shape, generator=generator) / 4)
    return grid


def weights() -> Tensor:
    return torch.randn(16, 128, generator=torch.Generator().manual_seed(0))


def a_training(batches: int) -> LayerTraining:
    """A layer of one matrix, whose inputs are correlated, so that errors can cancel."""
    grids: dict[str, TrainedGrid] = {"a": TrainedGrid(a_tensor())}
    mix = torch.randn(96, 128, generator=torch.Generator().manual_seed(2))

    def example(number: int) -> Example:
        x = torch.randn(2, 40, 96, generator=torch.Generator().manual_seed(3 + number)) @ mix
        return Example(lambda: x @ grids["a"].weight().T, x @ weights().T)

    return LayerTraining(grids, [partial(example, number) for number in range(batches)], 2048, 0)


def lost(training: LayerTraining, places: range) -> float:
    with torch.no_grad():
        return sum(float(training.batches[place]().loss()) for place in places) / len(places)


@pytest.mark.parametrize("fmt", FORMATS, ids=str)
def test_nothing_is_changed_before_training(fmt: QuantFormat) -> None:
    grid = LearnedGrid(a_tensor(fmt))
    assert torch.equal(grid.weight(), grid.start.dequantize())
    assert torch.equal(grid.stored().codes, grid.start.codes)


@pytest.mark.parametrize("fmt", FORMATS, ids=str)
def test_what_is_computed_with_is_what_is_stored(fmt: QuantFormat) -> None:
    grid = a_moved(fmt)
    stored = grid.stored()
    assert torch.equal(grid.weight(), stored.dequantize())
    assert torch.equal(grid.weight(slice(2, 5)), stored.dequantize()[2:5])
    levels, (low, high) = levels_of(stored.codes, fmt), extreme_levels(fmt)
    assert not torch.equal(stored.codes, grid.start.codes)
    assert low <= int(levels.min())
    assert int(levels.max()) <= high


@pytest.mark.parametrize("fmt", FORMATS, ids=str)
def test_gradients_are_those_of_integers_that_are_not_rounded(fmt: QuantFormat) -> None:
    grid = a_moved(fmt)
    slopes = torch.randn(16, 128, generator=torch.Generator().manual_seed(5))
    grid.weight().backward(slopes)
    stored = grid.stored()
    levels = levels_of(stored.codes, fmt).view(*stored.scale.shape, -1).requires_grad_()
    scale = stored.scale.clone().requires_grad_()
    weight = levels * scale.unsqueeze(-1)
    if stored.zero is not None:
        weight = weight + stored.zero.unsqueeze(-1)
    weight.view(16, 128).backward(slopes)
    assert levels.grad is not None
    torch.testing.assert_close(grid.moved.grad, levels.grad.view(16, 128))
    assert scale.grad is not None
    torch.testing.assert_close(grid.wider.grad, scale.grad * grid.start.scale / -fmt.levels[0], rtol=1e-4, atol=1e-5)


def test_a_layer_loses_less_on_batches_that_it_was_not_trained_on(monkeypatch: pytest.MonkeyPatch) -> None:
    losses, held_out = [], range(0, 40, LAYER_HELD_OUT)
    for reach in (0.0, 3.0):
        monkeypatch.setattr(layer_training, "_REACH", reach)
        training, others = a_training(40), a_training(60)
        before, unseen = lost(training, held_out), lost(others, range(40, 60))
        training.run()
        losses.append(lost(training, held_out))
        assert losses[-1] < before
        others.grids.update(training.grids)
        assert lost(others, range(40, 60)) < 0.97 * unseen
        same = torch.equal(training.grids["a"].stored().codes, a_tensor().codes)
        assert same == (reach == 0)
    assert losses[1] < 0.95 * losses[0]


def test_what_is_held_out_loses_no_more_even_where_training_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layer_training, "_RATE", 3.0)
    monkeypatch.setattr(layer_training, "_REACH", 100.0)
    training = a_training(40)
    before = lost(training, range(0, 40, LAYER_HELD_OUT))
    training.run()
    assert lost(training, range(0, 40, LAYER_HELD_OUT)) <= before


def test_few_batches_are_not_trained_on() -> None:
    training = a_training(8)
    training.run()
    assert torch.equal(training.grids["a"].stored().scale, a_tensor().scale)


def test_an_error_counts_by_the_size_of_its_token() -> None:
    wanted = torch.tensor([[[1.0, 1.0], [100.0, 100.0]]])
    assert float(Example(lambda: wanted * 1.1, wanted).loss()) == pytest.approx(0.01, rel=1e-4)
    assert float(Example(lambda: wanted, torch.zeros_like(wanted)).loss()) > 1e6


def test_the_same_seed_trains_the_same() -> None:
    found = []
    for _ in range(2):
        training = a_training(40)
        training.run()
        found.append(training.grids["a"].stored())
    assert torch.equal(found[0].scale, found[1].scale)
