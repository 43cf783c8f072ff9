"""What is run on the engine where memory is limited."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest

from qplan.card import ModelCard
from qplan.cost.free import held_memory
from qplan.errors import InputError
from qplan.formats import QuantFormat
from qplan.model.load import LoadedModel
from qplan.settings import MEMORIES
from qplan.uniform import uniform_formats
from qplan.verify.engine_memory import EngineMemory, first_tensors
from tests.support.invented_table import make_table

GB = 10**9


@pytest.fixture
def card() -> ModelCard:
    """Four layers of three tensors and a tied head, each of some 100 million weights."""
    made = make_table().model
    wide = tuple(replace(spec, out_features=100_000, in_features=1_024) for spec in made.tensors)
    return replace(made, tensors=wide, vocabulary=1000)


def memory(card: ModelCard, free_bytes: float) -> EngineMemory:
    return EngineMemory(card, 64, 20 * GB, int(free_bytes))


def test_more_is_run_the_more_memory_there_is(card: ModelCard) -> None:
    int4, fp16 = (uniform_formats(card, bits) for bits in (4, 16))
    needs = [memory(card, 0).need(int4, "normal", count) for count in (1, 2, 3, 4)]
    # three tensors of floats a layer
    assert [after - before for before, after in pairwise(needs)] == [12 * 102_400_000] * 3
    assert needs[-1] == memory(card, 0).need(fp16, "low") == memory(card, 0).need(int4, "normal")
    assert memory(card, 0).need(int4, "low") < needs[0] < needs[-1]
    assert memory(card, needs[-1]).settings(int4) == MEMORIES
    assert memory(card, needs[-1] - 1).settings(int4) == ("low",)
    assert memory(card, needs[-1] - 1).settings(fp16) == ()
    assert [memory(card, need).most_layers(int4) for need in needs] == [1, 2, 3, 4]


def test_what_is_left_out_is_named(card: ModelCard) -> None:
    int4 = uniform_formats(card, 4)
    assert memory(card, 20 * GB).left_out(int4, unfolded=card) == ()
    (told,) = memory(card, 4 * GB).left_out(int4, unfolded=card)
    assert str(told) == (
        "--max-memory 20 GB allowed no run on the engine of fp16 (low), fp16 (normal), int8 (normal), int4 (normal) "
        "and plan (normal); logits are compared one by one after the first 2 layers where memory normal is among these"
    )


def test_too_little_is_refused_with_the_limit_and_what_helps(card: ModelCard) -> None:
    int4 = uniform_formats(card, 4)
    scarce = memory(card, GB / 2)
    with pytest.raises(InputError, match=r"a layer and the head takes about 2\.\d GB .* 20\.0GB leaves 0\.5 GB"):
        scarce.most_layers(int4)
    with pytest.raises(
        InputError, match=r"this plan takes about 1\.\d GB in the engine, .* lower --budget, or use --no"
    ):
        scarce.check_runs(int4)
    memory(card, 3 * GB).check_runs(int4)


def test_this_process_is_taken_off(card: ModelCard) -> None:
    found = EngineMemory.beside_this_process(card, 64, 20 * GB)
    assert 10**7 < 20 * GB - found.free_bytes - 3 * 4 * 64 * 1000 < held_memory() * 2


def test_first_tensors_are_those_of_layers_and_of_none(qwen2: LoadedModel) -> None:
    names = {spec.name for spec in first_tensors(qwen2.card, 1)}
    assert names == {spec.name for spec in qwen2.card.tensors if ".layers.0." in spec.name} | {"lm_head"}
    assert first_tensors(qwen2.card, None) == qwen2.card.tensors
    assert QuantFormat(4) in set(uniform_formats(qwen2.card, 4).values())
