"""How far two means of dependent tokens may be apart by chance."""

from __future__ import annotations

import pytest
import torch

from qplan.verify.measure import STRETCH, mean_stderr


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
    assert mean_stderr(torch.ones(1, STRETCH)) == 0
