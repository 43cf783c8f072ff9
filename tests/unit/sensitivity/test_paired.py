"""How far two means of dependent tokens may be apart by chance."""

from __future__ import annotations

import math

import pytest
import torch

from qplan.sensitivity.metrics import TokenStats
from qplan.sensitivity.paired import STRETCH, Change, change_of, mean_stderr


def test_neighbors_that_differ_together_count_once() -> None:
    generator = torch.Generator().manual_seed(0)
    shared = torch.randn(4, 64, generator=generator, dtype=torch.float64)
    tokens = shared.repeat_interleave(STRETCH, dim=1)
    assert mean_stderr(tokens) == pytest.approx(float(shared.std()) / 256**0.5)
    # as if every token stood for itself, it would be too sure
    assert mean_stderr(tokens) > 3 * float(tokens.std()) / tokens.numel() ** 0.5


def test_a_bias_has_no_scatter() -> None:
    assert mean_stderr(torch.full((3, 40), 0.5)) == 0


def test_short_rows_are_taken_whole_and_one_stretch_tells_nothing() -> None:
    assert mean_stderr(torch.tensor([[1.0, 1.0], [3.0, 3.0]])) == pytest.approx(1.0)
    assert mean_stderr(torch.ones(1, STRETCH)) is None


def stats(kl: torch.Tensor) -> TokenStats:
    return TokenStats(kl, kl > 0, kl)


def test_models_are_compared_token_by_token() -> None:
    before = torch.rand(8 * 64, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    # losses scatter a hundred times as much as they fall, but all of them fall
    change = change_of(stats(before), stats(before * 0.99), 64)
    assert change.is_fall
    assert change.nats == pytest.approx(-0.01 * float(before.mean()))
    other = torch.rand(8 * 64, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    unrelated = change_of(stats(before), stats(other * 0.99), 64)
    assert not unrelated.is_fall
    assert unrelated.at_most > 0


def test_few_stretches_that_agree_are_no_proof() -> None:
    falls = torch.tensor([1.0, 2.0], dtype=torch.float64).repeat_interleave(STRETCH)
    assert not change_of(stats(falls), stats(torch.zeros_like(falls)), STRETCH).is_fall
    assert change_of(stats(falls.repeat(8)), stats(torch.zeros_like(falls.repeat(8))), STRETCH).is_fall


def test_nothing_is_beyond_doubt_on_one_stretch() -> None:
    change = change_of(stats(torch.ones(STRETCH)), stats(torch.zeros(STRETCH)), STRETCH)
    assert change == Change(-1.0, math.inf, 0)
    assert not change.is_fall
