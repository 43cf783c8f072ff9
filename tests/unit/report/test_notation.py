from __future__ import annotations

import math

import pytest

from qplan.report import notation


@pytest.mark.parametrize(
    ("count", "written"),
    [(0, "0 B"), (7, "7.00 B"), (999, "999 B"), (41_200, "41.2 kB"), (4_213_000, "4.21 MB"), (999_600, "1.00 MB")],
)
def test_sizes_are_si_with_three_digits(count: int, written: str) -> None:
    assert notation.size(count) == written


def test_missing_size() -> None:
    assert notation.size(None) == notation.MISSING


@pytest.mark.parametrize(
    ("nats", "written"),
    [
        (5.12e-4, "5.1e-4"),
        (9.96e-4, "1.0e-3"),
        (0.0, "0"),
        (1.26, "1.3"),
        (12.6, "13"),
        (0.126, "1.3e-1"),
        (-2e-6, "-2.0e-6"),
    ],
)
def test_losses_have_two_digits(nats: float, written: str) -> None:
    assert notation.loss(nats) == written


@pytest.mark.parametrize(
    ("value", "number"),
    [
        (0.613, "0.61"),
        (1.0, "1.00"),
        (0.9987, "1.00"),
        (1.00004, "1.00"),
        (0.9949, "0.99"),
        (20.84, "21"),
        (208.4, "210"),
        (4e-4, "4.0e-4"),
    ],
)
def test_ratios_have_two_decimals_or_two_digits(value: float, number: str) -> None:
    assert notation.ratio(value) == number + notation.TIMES


def test_ratio_of_nothing() -> None:
    assert notation.ratio(notation.quotient(1.0, 0.0)) == notation.MISSING
    assert notation.ratio(notation.quotient(None, 2.0)) == notation.MISSING
    assert notation.ratio(math.inf) == notation.MISSING


def test_decibels_may_be_infinite() -> None:
    assert notation.decibel(math.inf) == "∞"
    assert notation.decibel(41.26) == "41.3"
    assert notation.decibel(None) == notation.MISSING


def test_shares_near_one_keep_their_difference() -> None:
    assert notation.percent(0.9987) == "99.87 %"
    assert notation.percent(1.0) == "100.0 %"
    assert notation.percent(0.25) == "25.0 %"


def test_what_sorts_is_finite() -> None:
    order = [notation.sortable(v) for v in (None, -math.inf, 0.0, 1e-9, math.inf)]
    assert order == sorted(order)
    assert all(math.isfinite(v) for v in order)
