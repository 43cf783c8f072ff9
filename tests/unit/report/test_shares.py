"""Shares in words claim no more digits than are known."""

from __future__ import annotations

import pytest

from qplan.report.shares import is_same, loss_share
from qplan.report.words import ENGLISH


@pytest.mark.parametrize(
    ("share", "said"),
    [
        (0.1006, "a tenth of"),
        (0.49, "half"),
        (0.34, "a third of"),
        (0.17, "0.17×"),  # noqa: RUF001
        (0.62, "0.62×"),  # noqa: RUF001
        (0.9999, "1.00×"),  # noqa: RUF001
        (None, "\N{EN DASH}"),
    ],
)
def test_a_loss_near_a_fraction_is_called_that(share: float | None, said: str) -> None:
    assert loss_share(share, ENGLISH) == said


def test_sizes_half_a_percent_apart_are_the_same() -> None:
    assert is_same(0.9999)
    assert is_same(1.004)
    assert not is_same(0.99)
    assert not is_same(None)
