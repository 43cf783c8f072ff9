"""A sequence is divided so that every pass computes what a single one would."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qplan.mnn.engine import passes as module
from qplan.mnn.engine.passes import STEP, passes


@given(st.data(), st.integers(1, 700), st.sampled_from([3, 700_000, 4_000_000]))
def test_passes_are_whole_tiles_of_more_than_one_token(data: st.DataObject, tokens: int, vocabulary: int) -> None:
    first = data.draw(st.integers(0, tokens - 1))
    found = passes(tokens, first, vocabulary)
    assert sum(found) == tokens
    assert all(count % STEP == 0 for count in found[:-1])
    assert all(count >= 2 for count in found) or tokens == 1
    start = 0
    for count in found:  # logits of all positions are made from the pass of the first wanted one on
        if start + count > first:
            assert 4 * vocabulary * count <= max(module._LOGITS_BYTES, 8 * STEP * vocabulary)
        start += count


def test_the_head_computes_little_that_is_not_wanted() -> None:
    assert passes(100, 70, 1000) == [64, 36]
    assert passes(100, 3, 1000) == [100]
    assert passes(100, 99, 1000) == [96, 4]
    assert passes(97, 96, 1000) == [80, 17]
    assert passes(97, 95, 1000) == [80, 17]
    assert passes(1, 0, 1000) == [1]


def test_a_last_token_is_not_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LOGITS_BYTES", 4 * 1000 * 64)
    assert passes(129, 0, 1000) == [64, 48, 17]
    assert passes(130, 0, 1000) == [64, 64, 2]
