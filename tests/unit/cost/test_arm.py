"""Tokens and time of a proof on emulated processors."""

from __future__ import annotations

from dataclasses import replace

import pytest

from qplan.cost.arm import ArmCost, proof_tokens, proofs_at_once
from qplan.cost.shape import Shape
from qplan.cost.work import REFERENCE
from qplan.model.load import LoadedModel
from tests.support.costs import engine_cost


@pytest.mark.parametrize(
    ("weights", "available", "seq_len", "tokens"),
    [
        (3_000_000, 2048, 256, (512, 64)),
        (3_000_000, 300, 256, (256, 32)),
        (135_000_000, 2048, 256, (222, 27)),
        (135_000_000, 2048, 128, (128, 16)),
        (7_000_000_000, 2048, 256, (64, 8)),
        (3_000_000, 48, 16, (48, 6)),
        (3_000_000, 8, 8, (8, 1)),
    ],
)
def test_few_tokens_of_a_large_model_and_whole_rows_of_a_small_one(
    weights: int, available: int, seq_len: int, tokens: tuple[int, int]
) -> None:
    assert proof_tokens(weights, available, seq_len) == tokens


def test_no_more_processors_at_once_than_there_are() -> None:
    assert (proofs_at_once(3, 2), proofs_at_once(3, 16), proofs_at_once(1, 2)) == (2, 3, 1)


def test_time_follows_the_rounds_of_processors_and_memory_those_at_once(qwen2: LoadedModel) -> None:
    cost = ArmCost(engine_cost(Shape.of(qwen2.card, 10**6), 16), processors=1, at_once=1, available=128)

    def seconds(found: ArmCost) -> float:
        return sum(work.seconds(REFERENCE) for work in found.runs())

    one = seconds(cost)
    assert len(cost.runs()) == 4
    assert len(replace(cost, precision="normal").runs()) == 2  # in fp32 already
    assert seconds(replace(cost, precision="normal")) < one
    three = replace(cost, processors=3)
    assert seconds(three) == pytest.approx(3 * one, rel=0.1)
    assert seconds(replace(three, at_once=2)) == pytest.approx(2 * one, rel=0.1)
    assert replace(three, at_once=2).memory_bytes == 2 * three.memory_bytes
