"""The record of a tied embedding: both forms, and what is none."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qplan.errors import InputError
from qplan.formats import FP16, FP32, INT8, QuantFormat
from qplan.mnn.graph.tie import TieForm, TieRecord, check_tied, read_tie

FORMS: tuple[TieForm, ...] = ("dict", "list")


def test_both_forms_are_read() -> None:
    assert TieRecord.parse([1, 2, 3, 8, 64]) == TieRecord(1, 2, 3, 8, 64, 32, "list")
    assert TieRecord.parse([1, 2, 3, 8, 64, 1]) == TieRecord(1, 2, 3, 8, 64, 16, "list")
    whole = {"weight_offset": 1, "alpha_offset": 2, "alpha_size": 3, "quant_bit": 8, "quant_block": 64}
    assert TieRecord.parse(whole) == TieRecord(1, 2, 3, 8, 64, 32)
    assert read_tie({"tie_embeddings": whole | {"alpha_dtype": "fp16"}}) == TieRecord(1, 2, 3, 8, 64, 16)
    assert read_tie({"hidden_size": 64}) is None


@pytest.mark.parametrize(
    "wrong", ["", 5, [1, 2, 3], [1, 2, 3, 8, "64"], [1, 2, 3, 8, -1], [True] * 5, {"weight_offset": 1}, {}, False]
)
def test_what_is_no_record_is_refused(wrong: object) -> None:
    with pytest.raises(InputError, match="is neither five whole numbers nor an object of weight_offset, alpha_offset"):
        read_tie({"tie_embeddings": wrong})


@given(st.tuples(*[st.integers(0, 1 << 40)] * 5), st.sampled_from((16, 32)))
def test_a_written_record_reads_back(numbers: tuple[int, int, int, int, int], scale_bits: int) -> None:
    record = TieRecord(*numbers, scale_bits)
    assert TieRecord.parse(record.to_json()) == record
    listed = TieRecord(*numbers, 32, "list")
    assert TieRecord.parse(listed.to_json()) == listed


def test_what_is_written_of_a_format() -> None:
    tie = TieRecord.of(QuantFormat(8, 32, scale_bits=32), 10, 20, 30)
    assert tie.to_json() == {
        "weight_offset": 10,
        "alpha_offset": 20,
        "alpha_size": 30,
        "quant_bit": 8,
        "quant_block": 32,
        "alpha_dtype": "fp32",
    }
    assert TieRecord(10, 20, 30, 8, 32, 32, "list").to_json() == [10, 20, 30, 8, 32]


def test_formats_that_the_lookup_misreads_are_refused() -> None:
    for form in FORMS:
        check_tied("/lm", FP16, form)
        check_tied("/lm", FP32, form)  # halves of it are stored beside
        check_tied("/lm", QuantFormat(8, scale_bits=32), form)
        with pytest.raises(InputError, match="at 3 bits"):
            check_tied("/lm", QuantFormat(3, scale_bits=32), form)
    check_tied("/lm", INT8, "dict")
    with pytest.raises(InputError, match="use int8-s32"):
        check_tied("/lm", INT8, "list")
