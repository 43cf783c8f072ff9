from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from qplan.errors import MeasurementError
from qplan.formats import FP16, INT_BITS, QuantFormat
from qplan.quantize import IntTensor, StoredTensor, rtn
from qplan.quantize.gptq import gptq
from qplan.quantize.range_search import range_search

formats = st.builds(
    QuantFormat,
    bits=st.sampled_from(INT_BITS),
    block=st.sampled_from((0, 32)),
    symmetric=st.booleans(),
    scale_bits=st.sampled_from((16, 32)),
)


def problem(seed: int, out_features: int = 24, in_features: int = 96) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(out_features, in_features, generator=generator)
    mixing = torch.randn(in_features, in_features, generator=generator) / in_features**0.5
    inputs = torch.randn(512, in_features, generator=generator) @ (mixing + 0.5 * torch.eye(in_features))
    return weight, inputs.T @ inputs / len(inputs)


def output_error(weight: Tensor, stored: StoredTensor, hessian: Tensor) -> float:
    error = weight - stored.dequantize()
    return float(((error @ hessian) * error).sum())


@given(formats, st.integers(0, 2**31))
def test_gptq_loses_less_than_rounding_to_nearest(fmt: QuantFormat, seed: int) -> None:
    weight, hessian = problem(seed)
    nearest = output_error(weight, rtn(weight, fmt), hessian)
    assert output_error(weight, gptq(weight, fmt, hessian), hessian) < nearest


@given(formats, st.integers(0, 2**31))
def test_every_sweep_of_refinement_helps_or_does_nothing(fmt: QuantFormat, seed: int) -> None:
    weight, hessian = problem(seed)
    # the refinement works on the damped problem
    regular = hessian + 0.01 * hessian.diagonal().mean() * torch.eye(len(hessian))
    losses = [output_error(weight, gptq(weight, fmt, hessian, sweeps=n), regular) for n in (0, 1, 3)]
    assert losses[1] <= losses[0] * (1 + 1e-5)
    assert losses[2] <= losses[1] * (1 + 1e-5)


@given(formats, st.integers(0, 2**31))
def test_range_search_never_loses_to_the_full_range(fmt: QuantFormat, seed: int) -> None:
    weight, hessian = problem(seed)
    diagonal = torch.diag(hessian.diagonal())
    searched = output_error(weight, range_search(weight, fmt, hessian.diagonal()), diagonal)
    # rtn rounds with unrounded scales and stores rounded ones, so it may differ in the last digits
    assert searched <= output_error(weight, rtn(weight, fmt), diagonal) * (1 + 1e-3)


@given(formats, st.integers(0, 2**31))
def test_results_are_storable(fmt: QuantFormat, seed: int) -> None:
    weight, hessian = problem(seed, out_features=3)
    stored = gptq(weight, fmt, hessian)
    assert isinstance(stored, IntTensor)
    assert int(stored.codes.max()) < 2**fmt.bits
    assert not fmt.symmetric or int(stored.codes.min()) >= 1
    assert len(stored.weight_bytes()) + len(stored.alpha_bytes()) == fmt.record_bytes(3, 96, bias=False)
    if fmt.scale_bits == 16:
        assert torch.equal(stored.scale.half().float(), stored.scale)


def test_floats_pass_through() -> None:
    weight, hessian = problem(0)
    assert torch.equal(gptq(weight, FP16, hessian).dequantize(), weight.half().float())
    assert torch.equal(range_search(weight, FP16, hessian.diagonal()).dequantize(), weight.half().float())


def test_dead_features_and_unreached_layers() -> None:
    weight, hessian = problem(1)
    hessian[7], hessian[:, 7] = 0, 0
    stored = gptq(weight, QuantFormat(4, 32), hessian)
    assert torch.isfinite(stored.dequantize()).all()
    with pytest.raises(MeasurementError, match="no calibration token"):
        gptq(weight, QuantFormat(4, 32), torch.zeros_like(hessian))
