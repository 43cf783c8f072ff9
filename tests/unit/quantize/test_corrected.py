from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from qplan.formats import INT_BITS, QuantFormat
from qplan.quantize.corrected import PairedSums
from qplan.quantize.curvature import DAMPING, Curvature
from qplan.quantize.gptq import gptq

WIDTH, TOKENS = 96, 512

formats = st.builds(QuantFormat, bits=st.sampled_from(INT_BITS), block=st.sampled_from((0, 32)))


def inputs(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """A matrix, and what it is given in the float model and behind layers that lose something, row by row."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(24, WIDTH, generator=generator)
    mixing = torch.randn(WIDTH, WIDTH, generator=generator) / WIDTH**0.5
    exact = torch.randn(TOKENS, WIDTH, generator=generator) @ (mixing + 0.5 * torch.eye(WIDTH))
    # an error that the inputs foretell, and noise
    seen = exact + 0.1 * exact @ torch.randn(WIDTH, WIDTH, generator=generator) / WIDTH**0.5
    return weight, exact, seen + 0.05 * torch.randn(TOKENS, WIDTH, generator=generator)


def sums(exact: Tensor, seen: Tensor) -> PairedSums:
    found = PairedSums(WIDTH)
    for pair in zip(exact.view(4, -1, WIDTH), seen.view(4, -1, WIDTH), strict=True):
        found.add(*pair)
    return found


@given(formats, st.integers(0, 2**31))
def test_the_target_is_the_least_squares_solution_drawn_towards_the_weights(fmt: QuantFormat, seed: int) -> None:
    weight, exact, seen = inputs(seed)
    target = sums(exact, seen).target()
    # ridge regression of the float model's outputs on what is seen, as one problem of least squares
    ridge = (TOKENS * DAMPING * (seen.square().mean())).sqrt().double() * torch.eye(WIDTH, dtype=torch.float64)
    rows = torch.cat([seen.double(), ridge])
    wanted = torch.cat([exact.double() @ weight.double().T, ridge @ weight.double().T])
    solution = torch.linalg.lstsq(rows, wanted).solution.T.float()
    torch.testing.assert_close(target.weight(weight, fmt), solution, rtol=1e-3, atol=1e-3)


@given(formats, st.integers(0, 2**31))
def test_outputs_come_closer_to_the_float_models_than_without_correction(fmt: QuantFormat, seed: int) -> None:
    weight, exact, seen = inputs(seed)

    def error(values: Tensor) -> float:
        return float((seen @ values.T - exact @ weight.T).square().mean())

    plain = gptq(weight, fmt, Curvature(seen.T @ seen / TOKENS)).dequantize()
    assert error(sums(exact, seen).target().store(weight, fmt).dequantize()) < error(plain)


def test_without_earlier_losses_nothing_is_corrected() -> None:
    weight, exact, _ = inputs(3)
    fmt = QuantFormat(4, 32)
    target = sums(exact, exact).target()
    assert torch.equal(target.weight(weight, fmt), weight)
    stored, plain = target.store(weight, fmt), gptq(weight, fmt, target.curvature)
    assert torch.equal(stored.dequantize(), plain.dequantize())


@pytest.mark.parametrize("share", [0.5, 20.0])
def test_another_use_with_exact_inputs_counts_as_well(share: float) -> None:
    weight, exact, seen = inputs(5)
    generator = torch.Generator().manual_seed(6)
    lookups = share * torch.randn(TOKENS, WIDTH, generator=generator) @ torch.diag(torch.linspace(0.1, 1, WIDTH))
    more = lookups.T @ lookups / TOKENS
    found = sums(exact, seen).target(more).weight(weight, QuantFormat(4, 32))
    mean = (seen.square().mean() + more.diagonal().mean()).double()
    ridge = (TOKENS * DAMPING * mean).sqrt() * torch.eye(WIDTH, dtype=torch.float64)
    rows = torch.cat([seen.double(), lookups.double(), ridge])
    exact_rows = torch.cat([exact.double(), lookups.double(), ridge])
    solution = torch.linalg.lstsq(rows, exact_rows @ weight.double().T).solution.T.float()
    torch.testing.assert_close(found, solution, rtol=1e-3, atol=1e-3)
