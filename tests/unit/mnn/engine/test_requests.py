"""What is asked of the engine is refused with a sentence, whatever the number."""

from __future__ import annotations

import pytest

from qplan.errors import InputError
from qplan.mnn.engine.engine import Engine
from qplan.mnn.engine.requests import checked_count, checked_positions, checked_tokens

LONG = 10**5000
"""Python refuses to write it."""


@pytest.mark.parametrize("sign", [1, -1])
def test_a_token_of_thousands_of_digits(sign: int) -> None:
    with pytest.raises(InputError, match="token 0 is a number of thousands of digits, outside of the vocabulary of 9"):
        checked_tokens([sign * LONG], vocabulary=9, context=None)


def test_a_length_of_thousands_of_digits() -> None:
    with pytest.raises(InputError, match="1 tokens and far more to come exceed the context of 4"):
        checked_tokens([1], vocabulary=9, context=4, more=LONG)
    with pytest.raises(InputError, match="context a number of thousands of digits: must be"):
        checked_count("context", -LONG)
    with pytest.raises(InputError, match="timeout_s a number of thousands of digits: must be"):
        Engine("nowhere", timeout_s=LONG)


def test_a_long_number_is_cut() -> None:
    with pytest.raises(InputError, match=r"token 0 is 10{79}\.\.\., outside"):
        checked_tokens([10**400], vocabulary=9, context=None)


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ([], "expected a list of pairs"),
        ("ab", "expected a list of pairs"),
        ([(1, 2, 3)], "expected a list of pairs"),
        ([(4, 1)], "position 4: outside of the sequence of 4 tokens"),
        ([(-1, 1)], "position -1: must be a whole number from 0"),
        ([(0, 9)], "token 0 is 9, outside of the vocabulary of 9"),
        ([(LONG, 1)], "position a number of thousands of digits: outside"),
    ],
)
def test_a_position_that_is_none(wanted: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        checked_positions(wanted, 4, 9)


def test_positions_are_pairs_of_plain_numbers() -> None:
    assert checked_positions([[3, 8], (0, 0)], 4, 9) == [(3, 8), (0, 0)]
