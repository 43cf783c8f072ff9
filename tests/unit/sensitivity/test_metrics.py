"""Losses against their definitions in float64."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from qplan.errors import MeasurementError
from qplan.run.metrics import by_noise
from qplan.sensitivity.metrics import OutputError, OutputScale, compare, join, reference_of
from tests.support.whole_tables import compare_logits


def _direct_kl(reference: Tensor, variant: Tensor) -> Tensor:
    log_p = torch.log_softmax(reference.double(), -1)
    log_q = torch.log_softmax(variant.double(), -1)
    return (log_p.exp() * (log_p - log_q)).sum(-1).flatten()


def _pair(seed: int, scale: float, noise: float, shift: float = 0.0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, 5, 97, generator=generator) * scale
    variant = logits + torch.randn(2, 5, 97, generator=generator) * noise + shift
    return logits, variant, torch.randint(0, 97, (2, 5), generator=generator)


@settings(deadline=None)
@given(
    st.integers(0, 10**6),
    st.floats(0.1, 20),
    st.floats(-4, 1.3).map(lambda exponent: 10**exponent),
)
def test_kl_is_the_definition(seed: int, scale: float, noise: float) -> None:
    logits, variant, tokens = _pair(seed, scale, noise)
    kl = compare_logits(logits, variant, tokens).kl
    exact = _direct_kl(logits, variant)
    assert (kl >= 0).all()
    torch.testing.assert_close(kl, exact, rtol=1e-3, atol=1e-11)


@settings(deadline=None)
@given(st.integers(0, 10**6), st.floats(-50, 50))
def test_a_common_shift_of_the_logits_is_no_loss(seed: int, shift: float) -> None:
    logits, variant, tokens = _pair(seed, 3, 0.1, shift)
    torch.testing.assert_close(
        compare_logits(logits, variant, tokens).kl, _direct_kl(logits, variant), rtol=1e-3, atol=0
    )
    assert compare_logits(logits, logits + shift, tokens).kl_nats < 1e-10


@settings(deadline=None)
@given(st.integers(0, 10**6), st.floats(0.1, 20), st.floats(0, 20))
def test_nll_and_top1_are_their_definitions(seed: int, scale: float, noise: float) -> None:
    logits, variant, tokens = _pair(seed, scale, noise)
    stats = compare_logits(logits, variant, tokens)
    log_q = torch.log_softmax(variant.double(), -1)[:, :-1]
    exact = -log_q.gather(-1, tokens[:, 1:, None]).squeeze(-1).flatten()
    torch.testing.assert_close(stats.nll, exact, rtol=1e-5, atol=1e-5)
    assert torch.equal(stats.same_top, (variant.argmax(-1) == logits.argmax(-1)).flatten())


def test_identical_logits_lose_exactly_nothing() -> None:
    logits, _, tokens = _pair(0, 3, 0)
    reference = reference_of(logits, tokens)
    stats = compare(reference, logits.clone())
    assert stats.kl_nats == stats.kl_p99_nats == 0
    assert stats.top1 == 1
    torch.testing.assert_close(stats.nll, reference.nll, rtol=0, atol=0)


def test_a_tiny_loss_keeps_its_digits() -> None:
    logits, _, tokens = _pair(1, 3, 0)
    variant = logits.clone()
    variant[..., 0] += 2**-12
    exact = _direct_kl(logits, variant)
    assert exact.max() < 1e-8
    torch.testing.assert_close(compare_logits(logits, variant, tokens).kl, exact, rtol=1e-2, atol=1e-13)


def test_means_and_percentiles() -> None:
    logits, variant, tokens = _pair(2, 3, 1)
    stats = compare_logits(logits, variant, tokens)
    assert stats.tokens == 10
    assert len(stats.nll) == 8
    assert stats.kl_nats == pytest.approx(float(_direct_kl(logits, variant).mean()), rel=1e-5)
    assert stats.kl_nats < stats.kl_p99_nats <= float(stats.kl.max())
    twice = join([stats, stats])
    assert twice.tokens == 20
    assert twice.kl_nats == pytest.approx(stats.kl_nats)


def test_many_chunks_are_one(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, variant, tokens = _pair(3, 3, 1)
    whole = compare_logits(logits, variant, tokens)
    monkeypatch.setattr("qplan.sensitivity.metrics._CHUNK_ELEMENTS", 97 * 3)
    pieces = compare_logits(logits, variant, tokens)
    torch.testing.assert_close(pieces.kl, whole.kl)
    torch.testing.assert_close(pieces.nll, whole.nll)


def test_logits_that_cannot_be_compared_are_refused() -> None:
    logits, variant, tokens = _pair(4, 3, 1)
    with pytest.raises(MeasurementError, match="cannot be compared"):
        compare(reference_of(logits, tokens), variant[:1])
    variant[0, 1, 2] = math.nan
    with pytest.raises(MeasurementError, match="1 of 10 tokens have a loss that is not finite"):
        compare_logits(logits, variant, tokens)
    with pytest.raises(MeasurementError, match="overflows"):
        reference_of(variant, tokens)


def test_errors_of_outputs() -> None:
    scale = OutputScale(torch.tensor([3.0, 4.0]))
    assert scale.error(torch.tensor([3.0, 4.0])) == OutputError(math.inf, 1.0)
    assert OutputScale(torch.zeros(2)).error(torch.ones(2)) == OutputError(-math.inf, 0.0)
    assert scale.error(torch.tensor([3.5, 4.0])).sqnr_db == pytest.approx(20.0)
    assert scale.error(torch.tensor([6.0, 8.0])).cosine == pytest.approx(1.0)
    assert scale.error(torch.tensor([4.0, -3.0])).cosine == pytest.approx(0.0)


@settings(deadline=None)
@given(st.integers(0, 10**6), st.floats(-4, 1).map(lambda exponent: 10**exponent))
def test_cosine_is_its_definition(seed: int, noise: float) -> None:
    signal, actual, _ = _pair(seed, 2, noise)
    exact = torch.nn.functional.cosine_similarity(signal.double().flatten(), actual.double().flatten(), dim=0)
    assert OutputScale(signal).error(actual).cosine == pytest.approx(float(exact), rel=1e-6, abs=1e-7)


@given(st.lists(st.tuples(st.floats(0.1, 1e6), st.floats(1e-6, 1e6)), min_size=1, max_size=6))
def test_batches_combine_by_the_mean_of_noise_over_signal(batches: list[tuple[float, float]]) -> None:
    decibels = [(1, 10 * math.log10(signal / noise)) for signal, noise in batches]
    mean = sum(noise / signal for signal, noise in batches) / len(batches)
    assert by_noise(decibels) == pytest.approx(-10 * math.log10(mean), abs=1e-6)
    # a batch that reaches no output says nothing
    assert by_noise([*decibels, (1, math.inf)]) == by_noise(decibels)


def test_noise_without_signal_or_without_noise_stays_what_it_is() -> None:
    assert by_noise([(1, math.inf), (1, math.inf)]) == math.inf
    assert by_noise([(1, 20.0), (1, -math.inf)]) == -math.inf
    assert by_noise([(1, 20.0), (1, None)]) is None
