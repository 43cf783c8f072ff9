from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qplan.errors import InputError
from qplan.formats import FP16, FP32, INT4, INT8, INT_BITS, QuantFormat, has_options, parse_formats

int_formats = st.builds(
    QuantFormat,
    bits=st.sampled_from(INT_BITS),
    block=st.sampled_from((0, 32, 64, 128)),
    symmetric=st.booleans(),
    scale_bits=st.sampled_from((16, 32)),
)


@given(int_formats | st.just(FP16))
def test_a_name_reads_back_as_its_format(fmt: QuantFormat) -> None:
    assert QuantFormat.parse(fmt.name) == fmt


@pytest.mark.parametrize(
    ("name", "fmt"),
    [
        ("int4", INT4),
        ("INT8", INT8),
        ("int4-b32", QuantFormat(4, 32)),
        ("int8-b0-sym", QuantFormat(8, 0, symmetric=True)),
        ("int3-s32", QuantFormat(3, scale_bits=32)),
        ("fp16", FP16),
        ("fp32", FP32),
    ],
)
def test_names(name: str, fmt: QuantFormat) -> None:
    assert QuantFormat.parse(name) == fmt


@pytest.mark.parametrize("name", ["int7", "int1", "int16", "fp8", "int4-b63", "int4-b3", "4", "", "int4 -b32 -x"])
def test_impossible_formats_are_refused(name: str) -> None:
    with pytest.raises(InputError):
        QuantFormat.parse(name)


def test_a_list_is_sorted_widest_first_without_repeats() -> None:
    assert parse_formats("int4, fp16,int8,int4") == (FP16, INT8, INT4)


@pytest.mark.parametrize("text", ["", " , ", "fp32,int8"])
def test_lists_that_make_no_sense(text: str) -> None:
    with pytest.raises(InputError):
        parse_formats(text)


def test_record_bytes_of_the_measured_layout() -> None:
    # 8192 x 256, int8, block 64: header 262, codes, 4 blocks x 2 halves per row
    assert INT8.record_bytes(8192, 256, bias=False) == 262 + 8192 * 256 + 8192 * 4 * 2 * 2
    assert FP16.record_bytes(8192, 256, bias=True) == 8192 * 256 * 2 + 8192 * 4
    assert QuantFormat(3).code_bytes(2, 128) == 2 * 2 * 24
    # int32 dims beyond 65535
    assert INT8.header_bytes(151936, 896) == 1 + 8 + 1 + 256


def test_a_block_that_does_not_divide_becomes_the_whole_row() -> None:
    assert INT4.resolve(172) == QuantFormat(4, 0)
    assert INT4.resolve(256) == INT4
    assert FP16.resolve(172) == FP16


def test_both_options_make_sense_for_integers_that_the_engine_does_not_garble() -> None:
    assert has_options({"a": INT8, "b": FP16})
    assert not has_options({"a": FP16})
    assert not has_options({"a": INT8, "b": QuantFormat(4, 24)})
