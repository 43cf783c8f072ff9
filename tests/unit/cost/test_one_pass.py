"""Work of one pass there and back, held against what torch counts and what a model's shape says."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from qplan.cost.expected import Expected
from qplan.cost.one_pass import PROCESS_BYTES, OnePassCost, OnePassOptions
from qplan.cost.shape import Shape
from qplan.cost.work import REFERENCE, Machine
from qplan.formats import INT4, INT8
from qplan.model.load import LoadedModel
from tests.support.costs import COUNTING, ENDLESS

ROWS, SEQ_LEN = 4, 32

ASKED = OnePassOptions(
    judged=ROWS * SEQ_LEN,
    fit=0,
    witnesses=0,
    seq_len=SEQ_LEN,
    batch_size=ROWS,
    formats=(INT8, INT4),
    drawn=8,
    head_drawn=32,
    chosen=True,
    fold=False,
)


def _cost(loaded: LoadedModel, asked: OnePassOptions, machine: Machine) -> OnePassCost:
    return OnePassCost(Shape.of(loaded.card, 0), asked, machine)


@pytest.mark.parametrize("name", ["qwen2", "llama"])
def test_products_of_the_way_there_are_those_that_torch_counts(tiny_models: dict[str, LoadedModel], name: str) -> None:
    loaded = tiny_models[name]
    there = _cost(loaded, ASKED, COUNTING).stages()[1]
    with FlopCounterMode(display=False) as counter:
        loaded.logits(torch.zeros(ROWS, SEQ_LEN, dtype=torch.int64))
    head = 2 * ASKED.judged * loaded.card.tensors[-1].weights
    # which torch does not count on a CPU: products of queries and keys, and of scores and values
    attention = 2 * 2 * ASKED.judged * SEQ_LEN * loaded.card.tensors[-1].in_features * len(loaded.layers)
    assert there.seconds == pytest.approx(counter.get_total_flops() - head + attention, rel=1e-6)


def test_parts_add_up_to_a_stage(qwen2: LoadedModel) -> None:
    asked = replace(ASKED, fit=256, witnesses=128, fold=True, measured_passes=2.0)
    stages = _cost(qwen2, asked, REFERENCE).stages()
    assert [stage.name.split(":")[0] for stage in stages] == [
        "loading",
        "forward through all layers",
        "backward through all layers",
        "folded model",
        "measuring what plans hang on",
    ]
    layers = len(qwen2.layers)
    # the head is looked at twice on the way back, since its lookups come last
    assert [len(stage.parts) for stage in stages] == [1, layers + 1, layers + 2, 1, 1]
    for stage in stages:
        assert sum(stage.parts) == pytest.approx(stage.seconds)


def test_more_of_anything_takes_longer(qwen2: LoadedModel) -> None:
    asked = replace(ASKED, fit=256, witnesses=128)
    least = Expected(_cost(qwen2, asked, REFERENCE).stages())
    for more in (
        {"judged": 2 * asked.judged},
        {"fit": 2 * asked.fit},
        {"drawn": 16},
        {"formats": (*asked.formats, replace(INT4, block=0))},
        {"fold": True},
        {"measured_passes": 1.0},
    ):
        assert Expected(_cost(qwen2, replace(asked, **more), REFERENCE).stages()).seconds > least.seconds, more


def test_a_streamed_model_needs_less_memory_and_reads_more(qwen2: LoadedModel) -> None:
    whole, streamed = (Expected(_cost(qwen2, replace(ASKED, streamed=on), REFERENCE).stages()) for on in (False, True))
    assert streamed.memory_bytes < whole.memory_bytes
    reads = replace(ENDLESS, read=1.0)
    whole_read, streamed_read = (
        Expected(_cost(qwen2, replace(ASKED, streamed=on), reads).stages()).seconds for on in (False, True)
    )
    assert streamed_read > whole_read


def test_memory_holds_the_process_and_the_weights(qwen2: LoadedModel) -> None:
    for stage in _cost(qwen2, ASKED, REFERENCE).stages():
        assert stage.memory_bytes >= PROCESS_BYTES + 4 * qwen2.card.parameters


def test_gradients_in_bfloat16_move_products_and_nothing_else(qwen2: LoadedModel) -> None:
    counting = replace(COUNTING, bf16_flops=1.0)
    plain, half = (_cost(qwen2, replace(ASKED, half=on), counting).stages()[2].seconds for on in (False, True))
    assert half == pytest.approx(plain)
    assert _cost(qwen2, replace(ASKED, half=True), COUNTING).stages()[2].seconds < plain
