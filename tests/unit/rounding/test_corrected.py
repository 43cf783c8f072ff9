from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from qplan.formats import INT_BITS, QuantFormat
from qplan.rounding.corrected import PairedSums
from qplan.rounding.curvature import DAMPING, Curvature
from qplan.rounding.gptq import gptq

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
    share = target.share(weight)
    assert 0.9 < share < 1  # this correction is no noise
    torch.testing.assert_close(target.weight(weight, fmt), weight.lerp(solution, share), rtol=1e-3, atol=1e-3)


def test_a_token_that_counts_twice_counts_as_two() -> None:
    weight, exact, seen = inputs(9)
    times = 1 + torch.arange(TOKENS) % 3
    weighed, repeated = PairedSums(WIDTH), PairedSums(WIDTH)
    for part in (slice(0, TOKENS // 2), slice(TOKENS // 2, TOKENS)):
        weighed.add(exact[part], seen[part], times[part])
        repeated.add(*(values[part].repeat_interleave(times[part], 0) for values in (exact, seen)))
    one, other = weighed.target(), repeated.target()
    torch.testing.assert_close(one.curvature.moments, other.curvature.moments)
    torch.testing.assert_close(one.weight(weight, QuantFormat(4, 32)), other.weight(weight, QuantFormat(4, 32)))


def test_a_correction_that_is_noise_is_not_made() -> None:
    weight, seen, _ = inputs(7)

    def float_model(seed: int, few: Tensor) -> Tensor:
        """What nobody can foretell from what is seen."""
        return few + 0.3 * torch.randn(few.shape, generator=torch.Generator().manual_seed(seed))

    few, rest = seen[: TOKENS // 2], seen[TOKENS // 2 :]
    target = sums(float_model(1, few), few).target()
    share = target.share(weight)
    assert share < 0.3
    moved, full = (one.weight(weight, QuantFormat(4, 32)) for one in (target, replace(target, halves=())))
    torch.testing.assert_close(moved, weight.lerp(full, share))
    wanted = float_model(2, rest) @ weight.T
    errors = [float((rest @ values.T - wanted).square().mean()) for values in (moved, full)]
    assert errors[0] < errors[1]


def test_the_share_is_what_the_other_half_of_the_tokens_bears_out() -> None:
    weight, exact, seen = inputs(8)
    target = sums(exact, seen).target()
    parts = [values.view(4, -1, WIDTH)[half::2].flatten(0, 1) for values in (exact, seen) for half in (0, 1)]
    along = across = 0.0
    for one, other in ((0, 1), (1, 0)):
        lost, rows = (parts[one] - parts[2 + one]).double(), parts[2 + one].double()
        damped = rows.T @ rows / len(rows)
        damped.diagonal().add_(DAMPING * damped.diagonal().mean())
        found = weight.double() @ (lost.T @ rows / len(rows)) @ damped.inverse()
        change = parts[2 + other].double() @ found.T
        along += float((((parts[other] - parts[2 + other]).double() @ weight.double().T) * change).mean())
        across += float(change.square().mean())
    share = along / across
    assert target.share(weight) == pytest.approx(2 * share / (1 + share), rel=1e-3)


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
    target = sums(exact, seen).target(more)
    mean = (seen.square().mean() + more.diagonal().mean()).double()
    ridge = (TOKENS * DAMPING * mean).sqrt() * torch.eye(WIDTH, dtype=torch.float64)
    rows = torch.cat([seen.double(), lookups.double(), ridge])
    exact_rows = torch.cat([exact.double(), lookups.double(), ridge])
    solution = torch.linalg.lstsq(rows, exact_rows @ weight.double().T).solution.T.float()
    wanted = weight.lerp(solution, target.share(weight))
    torch.testing.assert_close(target.weight(weight, QuantFormat(4, 32)), wanted, rtol=1e-3, atol=1e-3)
