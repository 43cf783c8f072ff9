"""Names of processors, as people give them."""

from __future__ import annotations

import pytest

from qplan.cost.target import find_target
from qplan.errors import InputError
from qplan.mnn.arm.processors import PROCESSORS, USUAL, find_processor, parse_processors


def test_every_processor_is_a_target_of_its_arithmetic() -> None:
    for name, processor in PROCESSORS.items():
        assert find_target(name).arithmetics["low"] == ("arm-fp16" if processor.half else "arm")


def test_one_word_stands_for_the_usual_ones() -> None:
    assert parse_processors(["arm"]) == USUAL == ("arm-v8", "arm-dot", "arm-i8mm")


def test_words_and_commas_are_joined_in_one_order_without_repeats() -> None:
    assert parse_processors(["arm-sme2, arm-v8", "ARM-V8"]) == ("arm-v8", "arm-sme2")
    assert parse_processors(["arm-sme2,arm"]) == tuple(PROCESSORS)
    assert parse_processors([]) == ()


@pytest.mark.parametrize("word", ["x86", "arm-dot,", ",", "arm;arm-v8"])
def test_what_is_no_processor_is_refused_with_those_that_are(word: str) -> None:
    with pytest.raises(InputError, match=r"is no processor; use one or several of arm-v8, .*arm-sme2, arm \("):
        parse_processors([word])


def test_a_single_name_is_looked_up() -> None:
    assert find_processor("arm-dot").cpu == "cortex-a76"
    with pytest.raises(InputError, match="'arm' is unknown"):
        find_processor("arm")
