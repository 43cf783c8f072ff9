from __future__ import annotations

import math
from dataclasses import replace

import pytest

from qplan.cost.engine import EngineCost
from qplan.cost.file_bytes import estimate_fixed, file_bytes
from qplan.cost.shape import Shape
from qplan.model.load import LoadedModel
from qplan.uniform import uniform_formats
from tests.support.costs import engine_cost


def _cost(loaded: LoadedModel) -> EngineCost:
    return engine_cost(Shape.of(loaded.card, 0), 16)


@pytest.mark.parametrize("name", ["qwen2", "llama"])
def test_a_built_model_has_the_bytes_of_its_files(tiny_models: dict[str, LoadedModel], name: str) -> None:
    card = tiny_models[name].card
    files = file_bytes(card, uniform_formats(card, 16), estimate_fixed(card))
    assert _cost(tiny_models[name]).file_bytes(16) == pytest.approx(files.total, rel=0.01)


def test_what_does_not_fit_is_not_run(qwen2: LoadedModel) -> None:
    cost = _cost(qwen2)
    assert cost.memory(16, "normal") >= 4 * qwen2.card.tensors[-1].weights
    low, normal = cost.memory(8, "low"), cost.memory(8, "normal")
    assert low < normal
    some = replace(cost, most_bytes=(low + normal) / 2)
    assert some.runs(8) == ("low",)
    assert some.peak(8) == some.most_bytes
    assert 0 < some.measured(8, 64).engine_flops < cost.measured(8, 64).engine_flops
    none = replace(cost, most_bytes=0.0)
    assert none.measured(8, 64).engine_flops == 0
    assert none.exact(8).engine_flops == 0


def test_decoding_takes_longer_than_a_prefill_of_as_many_tokens(qwen2: LoadedModel) -> None:
    cost = _cost(qwen2)
    stepwise = cost.measured(8, 64).seconds_anywhere - replace(cost, decode_rows=0).measured(8, 64).seconds_anywhere
    assert stepwise > 0
    assert not math.isinf(cost.measured(8, 64, beside=True).engine_flops)
    assert cost.measured(8, 64, beside=True).engine_flops > cost.measured(8, 64).engine_flops
