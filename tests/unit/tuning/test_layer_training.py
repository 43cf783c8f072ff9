from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor

from qplan.cost.training import LAYER_HELD_OUT
from qplan.formats import QuantFormat
from qplan.rounding import IntTensor, rtn
from qplan.tuning.layer_training import Example, LayerTraining
from qplan.tuning.trained import TrainedGrid


def a_tensor() -> IntTensor:
    stored = rtn(weights(), QuantFormat(3, 32))
    assert isinstance(stored, IntTensor)
    return stored


def weights() -> Tensor:
    return torch.randn(16, 128, generator=torch.Generator().manual_seed(0))


def a_training(batches: int) -> LayerTraining:
    """A layer of one matrix, whose inputs have few directions, so that errors can cancel."""
    grids = {"a": TrainedGrid(a_tensor())}
    mix = torch.randn(12, 128, generator=torch.Generator().manual_seed(2))

    def example(number: int) -> Example:
        x = torch.randn(2, 40, 12, generator=torch.Generator().manual_seed(3 + number)) @ mix
        return Example(lambda: x @ grids["a"].weight().T, x @ weights().T)

    return LayerTraining(grids, [partial(example, number) for number in range(batches)], 80, 0)


def lost(training: LayerTraining, places: range) -> float:
    with torch.no_grad():
        return sum(float(training.batches[place]().loss()) for place in places) / len(places)


def test_a_layer_loses_less_on_batches_that_it_was_not_trained_on() -> None:
    training, others = a_training(40), a_training(60)
    held_out, new = range(0, 40, LAYER_HELD_OUT), range(40, 60)
    before, unseen = lost(training, held_out), lost(others, new)
    training.run()
    assert lost(training, held_out) < before
    with torch.no_grad():
        for name, value in others.grids["a"].parameters.items():
            value.copy_(training.grids["a"].parameters[name])
    assert lost(others, new) < 0.97 * unseen
    stored = training.grids["a"].stored()
    assert torch.equal(stored.codes, a_tensor().codes)
    assert not torch.equal(stored.scale, a_tensor().scale)


def test_what_is_held_out_loses_no_more_even_where_training_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qplan.tuning.layer_training._RATE", 3.0)
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
