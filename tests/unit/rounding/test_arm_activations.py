"""ARM's int8 activations: formulas by hand, and what sets them apart from x86's."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from qplan.rounding import EnginePath, Int8Activations, int8_decode, int8_prefill
from qplan.rounding.activations import int8_block_decode, int8_block_prefill
from qplan.rounding.arm_activations import arm_blocks, arm_decode, arm_prefill
from qplan.run.measurement import LEAST_HALF_PEAK
from qplan.settings import Arithmetic, DynamicOption

PATHS: tuple[EnginePath, ...] = ("prefill", "decode")


def draw(tokens: int, features: int, seed: int = 0) -> Tensor:
    x = torch.randn(2, tokens, features, generator=torch.Generator().manual_seed(seed))
    x[..., features // 3] *= 30
    return x


def by_hand(token: np.ndarray[tuple[int], np.dtype[np.float32]], *, half: bool) -> list[float]:
    """Option 2 on one block, number by number, as `MNNAsyLocalQuantInfo` and `MNNDynamicQuant` compute."""
    kind = np.float16 if half else np.float32
    one = np.float32
    low, high = one(kind(token.min())), one(kind(token.max()))
    span = one(high - low)
    zero = one(-(one(255) * low / span + one(128)))
    zero = one(math.copysign(math.floor(abs(zero) + 0.5), zero))
    factor = kind(one(255) / span)
    found = []
    for value in token:
        scaled = kind(kind(kind(value) * factor) + kind(zero))
        code = math.copysign(math.floor(abs(float(scaled)) + 0.5), float(scaled))
        code = min(127.0, max(-128.0, code))
        found.append(float(one(code) * (span / one(255)) + (low + one(128) * span / one(255))))
    return found


@given(seed=st.integers(0, 200), half=st.booleans())
def test_blocks_follow_the_engines_formula_number_by_number(seed: int, half: bool) -> None:  # noqa: FBT001
    x = torch.randn(32, generator=torch.Generator().manual_seed(seed)) * 3 + 0.7
    found = arm_blocks(x.view(1, 32), 0, half=half)[0]
    np.testing.assert_allclose(found.numpy(), by_hand(x.numpy(), half=half), rtol=2e-5, atol=2e-6)


def test_a_scale_per_token_is_that_of_x86_in_fp32() -> None:
    x = draw(5, 256)
    torch.testing.assert_close(arm_prefill(x, half=False), int8_prefill(x), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(arm_decode(x, half=False), int8_decode(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("block", [0, 32])
def test_every_token_has_the_shift_that_x86_has_in_decoding(block: int) -> None:
    x = draw(8, 192)
    arm = Int8Activations("prefill", 2, "arm").round(x, block)
    torch.testing.assert_close(arm, int8_block_decode(x, block), rtol=1e-4, atol=1e-4)
    assert (arm - x).norm() > 1.2 * (int8_block_prefill(x, block) - x).norm()


def test_ties_are_rounded_away_from_zero() -> None:
    x = torch.tensor([[127.0, 0.5, 1.5, 2.5, -0.5, -2.5]])
    assert arm_prefill(x, half=False).tolist() == [[127.0, 1.0, 2.0, 3.0, -1.0, -3.0]]
    assert int8_prefill(x).tolist() == [[127.0, 0.0, 2.0, 2.0, 0.0, -2.0]]


def test_fp16_takes_the_rounded_zero_back_in_decoding() -> None:
    x = draw(6, 256) + 0.3
    errors = [
        (arm_decode(x, half=half) - x.half().float() * half - x * (1 - half)).mean(-1).abs() for half in (True, False)
    ]
    step = (x.amax(-1) - x.amin(-1)) / 255
    assert (errors[0] < 0.2 * step).all()
    assert (errors[1] < 0.2 * step).all()


def test_fp16_holds_no_factor_for_a_tiny_token() -> None:
    x = torch.full((1, 64), 0.0)
    x[0, :8] = torch.linspace(-1, 1, 8) * LEAST_HALF_PEAK * 0.9
    seen = arm_prefill(x, half=True)
    assert seen[0, 1].abs() == pytest.approx(float(x.abs().max()), rel=2e-2)  # as large as the largest
    fine = arm_prefill(x * 2, half=True)
    assert (fine - 2 * x).abs().max() <= float(x.abs().max()) / 100


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("option", [0, 2])
@pytest.mark.parametrize("arithmetic", ["arm", "arm-fp16"])
@pytest.mark.parametrize("value", [0.0, 1.5])
def test_constant_tokens_stay_what_they_are(
    path: EnginePath, option: DynamicOption, arithmetic: Arithmetic, value: float
) -> None:
    x = torch.full((2, 5, 64), value)
    torch.testing.assert_close(Int8Activations(path, option, arithmetic).round(x, 0), x, rtol=1e-6, atol=0)


@pytest.mark.parametrize("arithmetic", ["arm", "arm-fp16"])
@pytest.mark.parametrize("option", [0, 2])
def test_an_experts_tokens_are_rounded_as_each_sequences_own(option: DynamicOption, arithmetic: Arithmetic) -> None:
    counts = (0, 1, 3)
    x = torch.randn(len(counts), 4, 32, generator=torch.Generator().manual_seed(0))
    for row, count in zip(x, counts, strict=True):
        row[count:] = 0
    many, one = Int8Activations("prefill", option, arithmetic), Int8Activations("decode", option, arithmetic)
    rounded = many.round(x, 16, routed=True)
    for row, got, count in zip(x, rounded, counts, strict=True):
        expected = (one if count == 1 else many).round(row[:count], 16)
        assert torch.equal(got[:count], expected)


def test_float_activations_stay_floats() -> None:
    x = draw(4, 64)
    assert torch.equal(Int8Activations("prefill", 2, "float").round(x, 0, routed=True), x)
