from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from qplan.errors import InputError
from qplan.formats import FP16, FP32, INT4, INT_BITS, QuantFormat
from qplan.rounding import FloatTensor, IntTensor, rtn
from qplan.rounding.packing import pack_codes

formats = st.builds(
    QuantFormat,
    bits=st.sampled_from(INT_BITS),
    block=st.sampled_from((0, 32, 64)),
    symmetric=st.booleans(),
    scale_bits=st.sampled_from((16, 32)),
)


def unpack_codes(data: bytes, bits: int, out_features: int, in_features: int) -> NDArray[np.uint8]:
    """Inverse of `pack_codes`: uint8 ``[out, in]``."""
    stream = np.unpackbits(np.frombuffer(data, dtype=np.uint8))
    count = out_features * in_features
    padded = np.zeros((count, 8), dtype=np.uint8)
    padded[:, 8 - bits :] = stream[: count * bits].reshape(count, bits)
    return np.packbits(padded, axis=-1).reshape(out_features, in_features)


@given(formats, st.integers(0, 2**31), st.sampled_from((64, 192)))
def test_stored_bytes_hold_exactly_the_dequantized_values(fmt: QuantFormat, seed: int, in_features: int) -> None:
    weight = torch.randn(5, in_features, generator=torch.Generator().manual_seed(seed))
    stored = rtn(weight, fmt)
    assert isinstance(stored, IntTensor)
    data, alpha = stored.weight_bytes(), stored.alpha_bytes()
    assert len(data) + len(alpha) == fmt.record_bytes(5, in_features, bias=False)

    # read the file's bytes as the engine does
    block = fmt.block_size(in_features)
    codes = unpack_codes(data[fmt.header_bytes(5, in_features) :], fmt.bits, 5, in_features)
    scales = np.frombuffer(alpha, np.float16 if fmt.scale_bits == 16 else np.float32).astype(np.float32)
    pairs = scales.reshape(5, -1, 1 if fmt.symmetric else 2)
    signed = codes.astype(np.float32) - 2 ** (fmt.bits - 1)
    values = signed.reshape(5, -1, block) * pairs[..., -1:]
    if not fmt.symmetric:
        values = values + pairs[..., :1]
    np.testing.assert_array_equal(values.reshape(5, in_features), stored.dequantize().numpy())


@given(formats, st.integers(0, 2**31))
def test_the_error_is_at_most_half_a_step(fmt: QuantFormat, seed: int) -> None:
    weight = torch.randn(4, 192, generator=torch.Generator().manual_seed(seed))
    stored = rtn(weight, fmt)
    assert isinstance(stored, IntTensor)
    step = stored.scale.repeat_interleave(fmt.block_size(192), dim=1)
    # 16-bit scales and zeros add at most their own rounding over the range
    slack = 2**-10 * weight.abs().max() * 3 if fmt.scale_bits == 16 else 1e-5
    assert ((stored.dequantize() - weight).abs() <= step / 2 + slack).all()


@pytest.mark.parametrize("bits", INT_BITS)
def test_constant_blocks_are_exact(bits: int) -> None:
    weight = torch.zeros(2, 64)
    assert torch.equal(rtn(weight, QuantFormat(bits)).dequantize(), weight)
    assert torch.equal(rtn(weight, QuantFormat(bits, symmetric=True)).dequantize(), weight)
    assert torch.equal(rtn(weight + 0.5, QuantFormat(bits)).dequantize(), weight + 0.5)


def test_halves_and_floats() -> None:
    weight = torch.tensor([[1.0, 1e-9, 7e4, 0.1]])
    half = rtn(weight, FP16)
    assert isinstance(half, FloatTensor)
    assert half.dequantize().tolist()[0][2] == 65504.0
    assert len(half.weight_bytes()) == 8
    assert torch.equal(rtn(weight, FP32).dequantize(), weight)


def test_bad_input_is_refused() -> None:
    with pytest.raises(InputError, match="172"):
        rtn(torch.zeros(2, 172), INT4)
    with pytest.raises(InputError, match="NaN"):
        rtn(torch.full((2, 64), torch.nan), INT4)


@given(st.sampled_from(INT_BITS), st.integers(1, 70), st.integers(0, 2**31))
def test_packing_round_trip(bits: int, in_features: int, seed: int) -> None:
    codes = np.random.default_rng(seed).integers(0, 2**bits, (3, in_features), dtype=np.uint8)
    packed = pack_codes(codes, bits)
    assert len(packed) == QuantFormat(bits, 0).code_bytes(3, in_features)
    assert np.array_equal(unpack_codes(packed, bits, 3, in_features), codes)


def test_packing_is_one_stream_with_the_first_value_on_top() -> None:
    # 3 bits: 101 010 111 | 000 001 110 without padding between the rows
    codes = np.array([[5, 2, 7], [0, 1, 6]], dtype=np.uint8)
    assert pack_codes(codes, 3) == bytes([0b10101011, 0b10000011, 0b10000000])
    assert pack_codes(np.array([[1, 15], [0, 9]], dtype=np.uint8), 4) == bytes([0x1F, 0x09])
