"""The ladder's tolerances, and the search for the layer that leaves them."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qplan.errors import InputError
from qplan.verify.climb import run_ladder
from qplan.verify.ladder import TOLERANCES, LadderOptions, Rung, first_layer_beyond, tolerances
from tests.support.tiny_models import save_model


@given(st.integers(1, 40).flatmap(lambda layers: st.tuples(st.just(layers), st.integers(0, layers))))
def test_the_first_layer_that_leaves_is_found_in_few_looks(case: tuple[int, int]) -> None:
    layers, first = case
    looks: list[int] = []

    def errors(count: int) -> float:
        looks.append(count)
        return 2.0 if count >= first else 0.5

    assert first_layer_beyond(errors, layers, 1.0) == (first, 0.5 if first else 0.0, 2.0)
    assert len(looks) == len(set(looks)) <= math.log2(layers + 1) + 2


def test_nan_leaves_every_tolerance() -> None:
    after, before, error = first_layer_beyond(lambda count: math.nan if count > 2 else 0.0, 5, 1e9)
    assert (after, before) == (3, 0.0)
    assert math.isnan(error)
    rung = Rung("int8", 0.0, 1e-5, math.nan, 0.02, 1.0, 1.0, 1)
    assert rung.computes
    assert not rung.holds


def test_tolerances() -> None:
    assert tolerances({"int8": 0.5}) == dict(TOLERANCES) | {"int8": 0.5}
    for wrong, words in (
        ({"int9": 1.0}, "no rung 'int9'"),
        ({"int8": 0.0}, "above 0"),
        ({"int8": math.nan}, "above 0"),
    ):
        with pytest.raises(InputError, match=words):
            tolerances(wrong)


def test_sequences_beyond_the_context_are_refused_before_the_model_loads(tmp_path: Path) -> None:
    told: list[str] = []
    options = LadderOptions(model=str(save_model("qwen2", tmp_path)), seq_len=129)
    with pytest.raises(InputError, match="--seq-len 129 is above the model's context of 128 tokens; lower it"):
        run_ladder(options, told.append, lambda _done, _total: None)
    assert told == []
