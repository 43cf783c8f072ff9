from __future__ import annotations

import torch

from qplan.rounding.curvature import Curvature, Ordered

BLOCKS = (70, 700)


def _moments() -> torch.Tensor:
    rows = torch.randn(900, 700, generator=torch.Generator().manual_seed(0)) * torch.linspace(0.1, 3, 700)
    return rows.T @ rows / len(rows)


def _same(one: Ordered, other: Ordered) -> bool:
    return all(
        torch.equal(first, second) for first, second in zip(vars(one).values(), vars(other).values(), strict=True)
    )


def test_the_factor_is_upper_and_makes_the_moments() -> None:
    found = Curvature(_moments()).ordered(70)
    assert torch.equal(found.factor, found.factor.triu())
    product = found.factor.double() @ found.factor.double().T
    torch.testing.assert_close(product, found.hessian.double(), rtol=0, atol=1e-5)


def test_a_sparing_curvature_finds_the_same_and_keeps_one_ordering() -> None:
    columns = torch.rand(700, generator=torch.Generator().manual_seed(1)) + 0.5
    plain, sparing = Curvature(_moments()), Curvature(_moments(), sparing=True)
    for block in BLOCKS:
        assert _same(plain.ordered(block), sparing.ordered(block))
        assert len(sparing._ordered) == 1
    for block in BLOCKS:
        assert _same(plain.scaled(columns).ordered(block), sparing.scaled(columns).ordered(block))
    # the ordering that was scaled in place is made again
    assert _same(plain.ordered(70), sparing.ordered(70))
