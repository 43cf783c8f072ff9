from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from qplan.formats import FP16, INT_BITS, QuantFormat
from qplan.rounding import IntTensor, StoredTensor, rtn
from qplan.rounding.hqq import hqq

formats = st.builds(
    QuantFormat,
    bits=st.sampled_from(INT_BITS),
    block=st.sampled_from((0, 32)),
    symmetric=st.booleans(),
    scale_bits=st.sampled_from((16, 32)),
)


def heavy_tailed(seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(12, 96, generator=generator) * (1 + torch.randn(12, 96, generator=generator) ** 2)


def mean_error(weight: Tensor, stored: StoredTensor) -> float:
    return float((weight - stored.dequantize()).abs().mean())


@given(formats, st.integers(0, 2**31))
def test_no_block_is_worse_than_on_its_full_range(fmt: QuantFormat, seed: int) -> None:
    weight = heavy_tailed(seed)
    # rtn rounds with unrounded scales and stores rounded ones, so it may differ in the last digits
    assert mean_error(weight, hqq(weight, fmt)) <= mean_error(weight, rtn(weight, fmt)) * (1 + 1e-3)


def test_it_helps_where_outliers_are() -> None:
    weight = heavy_tailed(0)
    assert mean_error(weight, hqq(weight, QuantFormat(3, 32))) < 0.97 * mean_error(
        weight, rtn(weight, QuantFormat(3, 32))
    )


@given(formats, st.integers(0, 2**31))
def test_results_are_storable(fmt: QuantFormat, seed: int) -> None:
    stored = hqq(heavy_tailed(seed), fmt)
    assert isinstance(stored, IntTensor)
    assert int(stored.codes.max()) < 2**fmt.bits
    assert len(stored.weight_bytes()) + len(stored.alpha_bytes()) == fmt.record_bytes(12, 96, bias=False)
    if fmt.scale_bits == 16:
        assert torch.equal(stored.scale.half().float(), stored.scale)


def test_the_scale_stays_at_the_full_range_of_an_asymmetric_grid() -> None:
    weight = heavy_tailed(1)
    fmt = QuantFormat(4, 32, scale_bits=32)
    found, nearest = hqq(weight, fmt), rtn(weight, fmt)
    assert isinstance(found, IntTensor)
    assert isinstance(nearest, IntTensor)
    assert torch.equal(found.scale, nearest.scale)
    assert found.zero is not None
    assert nearest.zero is not None
    assert not torch.equal(found.zero, nearest.zero)


def test_constant_blocks_and_floats() -> None:
    weight = torch.full((2, 64), 0.25)
    assert torch.equal(hqq(weight, QuantFormat(4, 32)).dequantize(), weight)
    assert torch.equal(hqq(weight, FP16).dequantize(), weight)
