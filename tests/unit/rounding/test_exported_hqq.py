"""What ``llmexport --hqq`` stores, held against llmexport's own code."""

from __future__ import annotations

import importlib.util
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from qplan.formats import FP16, INT_BITS, QuantFormat
from qplan.mnn.build.exporter_source import find_exporter
from qplan.rounding import IntTensor, StoredTensor, rtn
from qplan.rounding.exported_hqq import exported_hqq
from qplan.rounding.hqq import hqq

formats = st.builds(
    QuantFormat,
    bits=st.sampled_from(INT_BITS),
    block=st.sampled_from((0, 32)),
    symmetric=st.booleans(),
    scale_bits=st.just(32),
)


@cache
def theirs() -> Any:
    """llmexport's module, which needs torch alone."""
    path = find_exporter().script.parent / "utils" / "hqq_quantizer.py"
    spec = importlib.util.spec_from_file_location("hqq_quantizer", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def exported(weight: Tensor, fmt: QuantFormat) -> IntTensor:
    """The codes and values of its quantizer, put together as `torch_utils.quant` of llmexport does."""
    quantizer = theirs().HQQQuantizer(weight, fmt.bits, fmt.block_size(weight.shape[1]), fmt.symmetric)
    quantizer.quant()
    scale, half = quantizer.meta["scale"].flatten(), 1 << (fmt.bits - 1)
    codes = quantizer.W_q.reshape(weight.shape) + (half if fmt.symmetric else 0)
    zero = None if fmt.symmetric else scale * half - scale * quantizer.meta["zero"].flatten()
    rows = len(weight)
    return IntTensor(fmt, codes.to(torch.uint8), scale.view(rows, -1), None if zero is None else zero.view(rows, -1))


def same(one: StoredTensor, other: IntTensor) -> bool:
    assert isinstance(one, IntTensor)
    zeros = one.zero is other.zero or (one.zero is not None and other.zero is not None and one.zero.equal(other.zero))
    return one.codes.equal(other.codes) and one.scale.equal(other.scale) and zeros


@settings(max_examples=25)
@given(formats, st.integers(0, 2**31), st.sampled_from((1.0, 0.02, 1e-5)))
def test_it_is_llmexports_to_the_bit(fmt: QuantFormat, seed: int, size: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(12, 96, generator=generator) * (1 + torch.randn(12, 96, generator=generator) ** 2) * size
    weight[0], weight[1, :40] = 0.25 * size, 0.0
    assert same(exported_hqq(weight, fmt), exported(weight, fmt))


def test_rows_are_not_rounded_on_their_own() -> None:
    rising = torch.linspace(0.01, 2, 400)[:, None] * 0.02
    weight = torch.randn(400, 256, generator=torch.Generator().manual_seed(0)) * rising
    fmt = QuantFormat(4, 64, scale_bits=32)
    whole = exported_hqq(weight, fmt)
    assert same(whole, exported(weight, fmt))
    assert not same(exported_hqq(weight[:50], fmt), whole.rows(slice(50)))  # type: ignore[arg-type]


def test_it_is_neither_the_published_method_nor_never_worse_than_rounding_to_nearest() -> None:
    weight = torch.randn(64, 256, generator=torch.Generator().manual_seed(0)) * 0.02

    def error(stored: StoredTensor) -> float:
        return float((weight - stored.dequantize()).square().sum())

    fmt = QuantFormat(8)
    assert error(exported_hqq(weight, fmt)) > error(rtn(weight, fmt)) > error(hqq(weight, fmt))


@pytest.mark.parametrize("symmetric", [False, True])
def test_scales_have_the_width_of_the_format(symmetric: bool) -> None:  # noqa: FBT001
    weight = torch.randn(8, 64, generator=torch.Generator().manual_seed(3))
    stored = exported_hqq(weight, QuantFormat(4, 32, symmetric))
    assert isinstance(stored, IntTensor)
    assert stored.scale.half().float().equal(stored.scale)
    assert exported_hqq(weight, FP16).dequantize().equal(weight.half().float())
