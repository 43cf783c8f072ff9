from __future__ import annotations

from dataclasses import replace

import pytest

from qplan.cost.work import REFERENCE, Work, spell_time


def test_amounts_of_work_add_up() -> None:
    one, other = Work(flops=2, read=3), Work(flops=5, steps=7)
    assert one + other == Work(flops=7, read=3, steps=7)
    assert one.times(3) == one + one + one


def test_rounding_is_spread_over_processors_and_nothing_else() -> None:
    machine = replace(REFERENCE, processors=4)
    rounding = Work(roundings=1e8, steps=1e4, factor_flops=1e11, rounding_flops=1e11)
    other = Work(flops=1e12, values=1e10, read=1e9, written=1e9, seconds_anywhere=1)
    assert rounding.seconds(machine, 2) == pytest.approx(rounding.seconds(machine) / 2)
    assert rounding.seconds(machine, 100) == pytest.approx(rounding.seconds(machine) / 4)
    assert other.seconds(machine, 2) == other.seconds(machine)


def test_bfloat16_pays_where_it_is_clearly_faster() -> None:
    assert replace(REFERENCE, flops=1e11, bf16_flops=2e11).bf16_pays
    assert not replace(REFERENCE, flops=1e11, bf16_flops=1.2e11).bf16_pays


def test_times_are_as_precise_as_they_are_known() -> None:
    assert [spell_time(seconds) for seconds in (3.4, 119, 180, 7199, 9000)] == [
        "3 s",
        "119 s",
        "3 min",
        "120 min",
        "2.5 h",
    ]
