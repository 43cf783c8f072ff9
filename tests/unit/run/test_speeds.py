"""Ratios of times: what loads a machine in a round cancels out, and noise is no difference."""

from __future__ import annotations

import random

import pytest

from qplan.run.speeds import Round, ratio_of_times
from qplan.run.verification import Speed


def rounds(times: list[float]) -> tuple[Round, ...]:
    return tuple(Round(4 * time, time) for time in times)


def test_a_load_that_both_feel_cancels_out() -> None:
    loads = [1.0, 3.0, 1.1, 2.0, 5.0]
    spread = ratio_of_times(rounds([1.2 * load for load in loads]), rounds(loads), "decode")
    assert (spread.times, spread.low, spread.high) == pytest.approx((1.2, 1.2, 1.2))
    assert spread.slower
    assert spread.differs


def test_noise_is_no_difference_and_one_bad_round_of_many_decides_nothing() -> None:
    rng = random.Random(0)
    noisy = [[rng.lognormvariate(0, 0.1) for _ in range(9)] for _ in range(2)]
    spread = ratio_of_times(rounds(noisy[0]), rounds(noisy[1]), "prefill")
    assert not spread.differs
    assert not spread.slower
    steady = [1.1] * 8 + [0.5]
    assert ratio_of_times(rounds(steady), rounds([1.0] * 9), "decode").slower
    assert not ratio_of_times(rounds([1.1, 1.1, 0.9]), rounds([1.0] * 3), "decode").slower


def test_a_little_slower_is_told_and_allowed() -> None:
    spread = ratio_of_times(rounds([1.02] * 5), rounds([1.0] * 5), "decode")
    assert spread.differs
    assert not spread.slower


def test_what_nobody_feels_is_not_slower() -> None:
    spread = ratio_of_times(rounds([1.2e-4] * 5), rounds([1e-4] * 5), "decode")
    assert spread.differs
    assert not spread.slower
    assert ratio_of_times(rounds([1.2e-3] * 5), rounds([1e-3] * 5), "decode").slower


def test_models_that_did_not_take_turns_are_not_compared() -> None:
    one = Speed("low", 1, 128, 100.0, 10.0, 1, rounds=rounds([1.0]), session="a")
    assert one.against(one, "decode") is not None
    other = Speed("low", 1, 128, 100.0, 10.0, 1, rounds=rounds([1.0]), session="b")
    assert one.against(other, "decode") is None
    alone = Speed("low", 1, 128, 100.0, 10.0, 1)
    assert alone.against(alone, "decode") is None
