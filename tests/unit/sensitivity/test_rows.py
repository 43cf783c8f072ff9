"""Sums over a few drawn output features: right on average, exact if all are drawn, honest about their error."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from qplan.sensitivity.rows import RowSample


def _losses(rows: int, seed: int) -> tuple[Tensor, Tensor]:
    """Losses of a matrix's rows, a few of them large, and what was known of them before."""
    generator = torch.Generator().manual_seed(seed)
    rough = torch.exp(1.5 * torch.randn(rows, generator=generator, dtype=torch.float64))
    return rough * torch.exp(0.5 * torch.randn(rows, generator=generator, dtype=torch.float64)), rough


def test_all_rows_give_the_sum_itself() -> None:
    losses, rough = _losses(40, seed=1)
    sample = RowSample.draw(rough, 100, seed=0)
    total, stderr = sample.sum(losses[sample.rows])
    assert float(total) == pytest.approx(float(losses.sum()), rel=1e-12)
    assert float(stderr) == 0


def test_a_few_rows_are_right_on_average_and_their_error_is_told() -> None:
    losses, rough = _losses(2000, seed=2)
    exact = float(losses.sum())
    errors, told = [], []
    for seed in range(300):
        sample = RowSample.draw(rough, 50, seed)
        assert abs(len(sample.rows) - 50) <= 1
        total, stderr = sample.sum(losses[sample.rows])
        errors.append((float(total) - exact) / exact)
        told.append(float(stderr) / exact)
    spread = torch.tensor(errors).std()
    assert abs(sum(errors) / len(errors)) < 3 * float(spread) / len(errors) ** 0.5
    assert 0.8 < sum(told) / len(told) / float(spread) < 1.35
    # rows drawn alike would be this far off
    plain = float(losses.std()) * 2000 / 50**0.5 / exact
    assert float(spread) < 0.5 * plain


def test_rows_that_matter_most_are_always_drawn() -> None:
    _, rough = _losses(500, seed=3)
    rough[[7, 300]] = 100 * rough.sum()
    for seed in range(20):
        sample = RowSample.draw(rough, 10, seed)
        assert {7, 300} <= set(sample.rows.tolist())
        assert sample.weights[sample.rows == 7].tolist() == [1.0]


def test_what_was_thought_to_lose_nothing_is_drawn_too() -> None:
    rough = torch.zeros(100, dtype=torch.float64)
    losses = torch.arange(100, dtype=torch.float64)
    means = [RowSample.draw(rough, 10, seed) for seed in range(200)]
    totals = [float(sample.sum(losses[sample.rows])[0]) for sample in means]
    assert sum(totals) / len(totals) == pytest.approx(float(losses.sum()), rel=0.03)


def test_several_sums_at_once() -> None:
    losses, rough = _losses(300, seed=4)
    sample = RowSample.draw(rough, 30, seed=0)
    both, stderr = sample.sum(torch.stack([losses[sample.rows], 2 * losses[sample.rows]]))
    assert both[1] == pytest.approx(2 * float(both[0]))
    assert stderr[1] == pytest.approx(2 * float(stderr[0]))


def test_what_a_few_of_the_drawn_gain_is_brought_to_the_others() -> None:
    rough, before = _losses(2000, seed=4)
    after = rough * 0.7 * torch.exp(0.2 * torch.randn(2000, generator=torch.Generator().manual_seed(5)))
    exact = float(after.sum() / rough.sum())
    off, told = [], []
    for seed in range(300):
        sample = RowSample.draw(before, 64, seed)
        places = torch.arange(16) * len(sample.rows) // 16
        drawn = rough[sample.rows]
        found, stderr = sample.ratio(drawn, after[sample.rows][places], places)
        off.append(float(found) / exact - 1)
        told.append(float(stderr) / exact)
    spread = float(torch.tensor(off).std())
    assert abs(sum(off) / len(off)) < 0.01
    assert 0.02 < spread < 0.1
    assert 0.6 < sum(told) / len(told) / spread < 1.4
