from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from qplan.errors import InputError
from qplan.formats import FP16, QuantFormat
from qplan.rounding import EnginePath, Int8Activations, int8_decode, int8_prefill
from qplan.rounding.activations import int8_block_decode, int8_block_prefill
from qplan.settings import DynamicOption

PATHS: tuple[EnginePath, ...] = ("prefill", "decode")
OPTIONS: tuple[DynamicOption, ...] = (0, 2)


def draw(tokens: int, features: int, seed: int = 0) -> Tensor:
    """Activations with an outlier feature, as layers have."""
    x = torch.randn(2, tokens, features, generator=torch.Generator().manual_seed(seed))
    x[..., features // 3] *= 30
    return x


def test_prefill_is_symmetric_per_token() -> None:
    x = torch.tensor([[-1.0, 0.5, 0.003], [127.0, -63.6, 0.2]])
    expected = torch.tensor([[-127, 64, 0], [127, -64, 0]]) * torch.tensor([[1 / 127], [1.0]])
    torch.testing.assert_close(int8_prefill(x), expected)


def test_decode_uses_the_whole_range_of_a_one_sided_token() -> None:
    x = torch.rand(4, 512, generator=torch.Generator().manual_seed(0)) + 3
    symmetric = (int8_prefill(x) - x).abs().max()
    asymmetric = (int8_decode(x) - x).abs().max()
    assert asymmetric < symmetric / 4


def test_zeros_that_fill_a_row_up_count_in_its_range() -> None:
    x = torch.rand(3, 20, generator=torch.Generator().manual_seed(0)) + 3
    step = x.amax(-1, keepdim=True) / 255
    torch.testing.assert_close(int8_decode(x), torch.round(x / step) * step)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("value", [0.0, 1.5])
def test_constant_tokens_stay_what_they_are(path: EnginePath, option: DynamicOption, value: float) -> None:
    x = torch.full((2, 5, 64), value)
    torch.testing.assert_close(Int8Activations(path, option).round(x, 0), x, rtol=1e-6, atol=0)


@given(tokens=st.integers(1, 9), seed=st.integers(0, 1000))
def test_one_block_is_a_token_in_tiles_and_a_shifted_token_beyond_them(tokens: int, seed: int) -> None:
    x = draw(tokens, 64, seed)
    whole = tokens - tokens % 4
    for block in (0, 64):
        found = int8_block_prefill(x, block)
        assert torch.equal(found[:, :whole], int8_decode(x[:, :whole]))
        assert torch.equal(found[:, whole:], int8_block_decode(x[:, whole:], block))


@given(block=st.sampled_from([16, 32, 64]), tokens=st.integers(1, 9), seed=st.integers(0, 1000))
def test_blocks_do_not_see_each_other(block: int, tokens: int, seed: int) -> None:
    x = draw(tokens, 192, seed)
    for rounded in (int8_block_prefill, int8_block_decode):
        parts = [rounded(part, 0) for part in x.split(block, -1)]
        assert torch.equal(rounded(x, block), torch.cat(parts, -1))


@given(block=st.sampled_from([0, 16, 32, 64]), seed=st.integers(0, 1000))
def test_errors_stay_within_a_half_step_and_within_a_whole_one_where_shifted(block: int, seed: int) -> None:
    x = draw(8, 192, seed)
    blocks = x.unflatten(-1, (-1, block or 192))
    step = ((blocks.amax(-1) - blocks.amin(-1)) / 255).unsqueeze(-1)
    for rounded, steps in ((int8_block_prefill, 0.5), (int8_block_decode, 1.0)):
        error = (rounded(x, block).unflatten(-1, (-1, block or 192)) - blocks).abs() / step
        assert error.max() <= steps + 1e-3


def test_a_shift_is_common_to_a_block() -> None:
    x = draw(4, 64)
    shift = (int8_block_decode(x, 64) - x).mean(-1)
    plain = (int8_block_prefill(x, 64) - x).mean(-1)
    assert shift.abs().mean() > 3 * plain.abs().mean()


def test_blocks_keep_an_outlier_from_the_others() -> None:
    x = draw(8, 256)
    for path in PATHS:
        token, block = (Int8Activations(path, option).round(x, 64) - x for option in OPTIONS)
        assert block.norm() < 0.75 * token.norm()


def test_activations_follow_the_blocks_of_the_weights_under_option_2_only() -> None:
    for path in PATHS:
        token, block = Int8Activations(path), Int8Activations(path, 2)
        assert [token.block(QuantFormat(4, b)) for b in (0, 4, 64)] == [0, 0, 0]
        assert [block.block(QuantFormat(4, b)) for b in (0, 16, 64)] == [0, 16, 64]
        assert block.block(FP16) == 0
        for garbled in (4, 8, 24):
            with pytest.raises(InputError, match="multiples of 16, a whole row, or dynamic_option 0"):
                block.block(QuantFormat(4, garbled))


@pytest.mark.parametrize(("option", "block"), [(0, 0), (2, 0), (2, 16)])
def test_an_experts_tokens_are_rounded_as_each_sequences_own(option: DynamicOption, block: int) -> None:
    counts = (0, 1, 3, 6)
    x = torch.randn(len(counts), 6, 32, generator=torch.Generator().manual_seed(0))
    for row, count in zip(x, counts, strict=True):
        row[count:] = 0
    many, one = Int8Activations("prefill", option), Int8Activations("decode", option)
    rounded = many.round(x, block, routed=True)
    for row, got, count in zip(x, rounded, counts, strict=True):
        # the engine runs an expert on one token of a prompt as it does in decoding
        expected = (one if count == 1 else many).round(row[:count], block)
        assert torch.equal(got[:count], expected)
        assert not got[count:].any()
    assert not torch.equal(many.round(x[1], block), rounded[1]) or option == 2
    assert torch.equal(one.round(x, block, routed=True), one.round(x, block))
