"""Losses as plans count them, held against isotonic regression of SciPy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import isotonic_regression

from qplan.run.monotone import ordered_losses

WIDTHS = (2, 3, 4, 5, 6, 8)
losses = st.lists(st.floats(0, 1), min_size=6, max_size=6)
errors = st.lists(st.floats(1e-3, 1), min_size=6, max_size=6)


def chain(values: list[float], suffix: str = "") -> dict[str, float]:
    return {f"int{bits}{suffix}": value for bits, value in zip(WIDTHS, values, strict=True)}


@given(losses, errors)
def test_they_are_the_nearest_that_never_rise_with_the_width(values: list[float], stderrs: list[float]) -> None:
    found = list(ordered_losses(chain(values), chain(stderrs)).values())
    weights = 1 / np.array(stderrs) ** 2
    expected = isotonic_regression(values, weights=weights, increasing=False).x
    assert found == pytest.approx(list(expected), abs=1e-9)


@given(losses)
def test_what_is_in_order_stays(values: list[float]) -> None:
    ordered = chain(sorted(values, reverse=True))
    assert ordered_losses(ordered, {}) == ordered


def test_other_blocks_are_another_matter_and_floats_are_the_widest_of_all() -> None:
    found = ordered_losses(
        {"int8": 3.0, "int6": 1.0, "int6-b0": 0.5, "int8-b0": 0.25, "fp16": 0.3, "int4-sym": 9.0}, {}
    )
    assert found == {"int8": 2.0, "int6": 2.0, "int6-b0": 0.5, "int8-b0": 0.25, "fp16": 0.25, "int4-sym": 9.0}
    assert list(found) == ["int8", "int6", "int6-b0", "int8-b0", "fp16", "int4-sym"]
