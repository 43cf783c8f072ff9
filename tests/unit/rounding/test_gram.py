from __future__ import annotations

import pytest
import torch

from qplan.rounding.gram import add_gram, by_rows, divided, gram, mirrored


@pytest.mark.parametrize("width", [7, 1024, 2500])
def test_a_gram_matrix_is_whole_and_symmetric(width: int) -> None:
    rows = torch.randn(20, width, generator=torch.Generator().manual_seed(0))
    found = gram(rows)
    torch.testing.assert_close(found, found.T)
    torch.testing.assert_close(found, rows.T @ rows, rtol=1e-4, atol=1e-4)


def test_sums_in_float64_become_a_mean_in_float32() -> None:
    parts = torch.randn(3, 10, 1500, generator=torch.Generator().manual_seed(0))
    total = torch.zeros(1500, 1500, dtype=torch.float64)
    for rows in parts:
        add_gram(total, rows)
    mean = mirrored(by_rows(total, 30))
    flat = parts.flatten(0, 1).double()
    assert mean.dtype == torch.float32
    torch.testing.assert_close(mean.double(), flat.T @ flat / 30, rtol=1e-5, atol=1e-6)


def test_moments_are_divided_in_place_or_beside() -> None:
    generator = torch.Generator().manual_seed(0)
    rows, columns = torch.randn(9, 1100, generator=generator), torch.rand(1100, generator=generator) + 0.5
    matrix = rows.T @ rows
    found = divided(matrix, columns)
    torch.testing.assert_close(found, (rows / columns).T @ (rows / columns), rtol=1e-4, atol=1e-4)
    assert divided(matrix, columns, out=matrix) is matrix
    assert torch.equal(matrix, found)
