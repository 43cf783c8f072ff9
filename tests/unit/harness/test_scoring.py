"""What is scored of a request, and which requests one pass answers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qplan.errors import InputError
from qplan.harness.scoring import Continuation, continuation, shared_passes

TOKENS = st.lists(st.integers(0, 2), min_size=1, max_size=6)


def test_targets_follow_the_positions_before_them() -> None:
    found = continuation([7, 8, 9], [1, 2], longest=10)
    assert found.inputs == (7, 8, 9, 1)
    assert found.wanted == [(2, 1), (3, 2)]


def test_a_long_context_loses_its_beginning() -> None:
    assert continuation([5, 6, 7, 8, 9], [1, 2], longest=3) == Continuation((8, 9, 1), (1, 2))
    # a continuation that fills the context has one token before its first
    assert continuation([8, 9], [1, 2, 3], longest=3) == Continuation((9, 1, 2), (1, 2, 3))


@pytest.mark.parametrize(
    ("context", "targets", "message"),
    [
        ([1], [1, 2, 3, 4], "a continuation of 4 tokens exceeds the context of 3"),
        ([], [1], "a context of 0 tokens"),
        ([1], [], "a continuation of 0: both need one"),
    ],
)
def test_what_cannot_be_scored(context: list[int], targets: list[int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        continuation(context, targets, longest=3)


@given(st.lists(st.tuples(TOKENS, TOKENS), max_size=12))
def test_every_request_is_in_one_pass_that_begins_like_it(pairs: list[tuple[list[int], list[int]]]) -> None:
    asked = [continuation(context, targets, longest=99) for context, targets in pairs]
    found = shared_passes(asked)
    assert sorted(place for one in found for place in one.members) == list(range(len(asked)))
    for one in found:
        assert all(one.inputs[: len(asked[place].inputs)] == asked[place].inputs for place in one.members)
    # no fewer passes could do: none begins another
    inputs = [one.inputs for one in found]
    assert not any(a != b and b[: len(a)] == a for a in inputs for b in inputs)
    assert len(set(inputs)) == len(inputs)
    assert [len(one) for one in inputs] == sorted((len(one) for one in inputs), reverse=True)


def test_letters_share_a_pass_and_sentences_do_not() -> None:
    letters = [continuation([1, 2, 3], [letter], 99) for letter in (10, 11, 12, 13)]
    assert [one.members for one in shared_passes(letters)] == [(0, 1, 2, 3)]
    sentences = [continuation([1, 2, 3], [first, 5], 99) for first in (10, 11)]
    assert len(shared_passes(sentences)) == 2
