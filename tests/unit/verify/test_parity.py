"""Promises of RAM and speed: broken only beyond the noise, and made only for this machine."""

from __future__ import annotations

from dataclasses import replace

import pytest

from qplan.choosing.activations import BlockGain
from qplan.run.plan import Plan, PlannedLimit
from qplan.run.speeds import Round
from qplan.run.verification import Check, Speed
from qplan.settings import DynamicOption
from qplan.verify.option_by_speed import option_by_speed
from qplan.verify.parity import Speeds, parity_checks
from tests.support.invented_run import small_run

LIMIT = PlannedLimit("RAM", 1.0, 0.5, "MB", "int8")
MB = 1_000_000


@pytest.fixture
def plan() -> Plan:
    return replace(small_run().plan, limits=(LIMIT,), parity="all")


def speed(ram: int, decode: list[float], option: DynamicOption = 0) -> Speed:
    rounds = tuple(Round(50 * time, time) for time in decode)
    return Speed("low", 1, 128, 100.0, 1 / sorted(decode)[len(decode) // 2], ram, option, rounds, "here")


def checks(plan: Plan, speeds: Speeds) -> dict[str, Check]:
    return {check.promise.code: check for check in parity_checks(plan, speeds)}


def test_kept_promises_say_what_was_found(plan: Plan) -> None:
    found = checks(plan, {("int8", 0): speed(90 * MB, [0.02] * 9), ("plan", 0): speed(91 * MB, [0.019] * 9)})
    assert set(found) == {"ram-of-uniform", "decode-of-uniform", "prefill-of-uniform"}
    assert all(check.passed for check in found.values())
    assert "0.950 times as long" in found["decode-of-uniform"].detail
    same = speed(90 * MB, [0.02] * 9)
    shared = checks(plan, {("int8", 0): same, ("plan", 0): same})
    assert shared["prefill-of-uniform"].detail == "no difference: the engine computes both with the same formats"


def test_more_ram_and_slower_decode_are_broken_promises(plan: Plan) -> None:
    found = checks(plan, {("int8", 0): speed(90 * MB, [0.02] * 9), ("plan", 0): speed(99 * MB, [0.021] * 9)})
    assert not found["ram-of-uniform"].passed
    assert not found["decode-of-uniform"].passed


def test_a_noisy_machine_breaks_none(plan: Plan) -> None:
    noisy = [0.02, 0.024, 0.018, 0.03, 0.021, 0.019, 0.022, 0.026, 0.02]
    found = checks(plan, {("int8", 0): speed(90 * MB, [0.02] * 9), ("plan", 0): speed(90 * MB, noisy)})
    assert found["decode-of-uniform"].passed
    assert found["decode-of-uniform"].detail.startswith("no difference: 1.050 times as long, 0.950 to 1.300")


def test_other_plans_and_other_machines_promise_nothing(plan: Plan) -> None:
    speeds: dict[tuple[str, DynamicOption], Speed] = {
        ("int8", 0): speed(90 * MB, [0.02] * 9),
        ("plan", 0): speed(200 * MB, [0.1] * 9),
    }
    assert not parity_checks(replace(plan, limits=()), speeds)
    assert not parity_checks(replace(plan, limits=(replace(LIMIT, of=""),)), speeds)
    assert not parity_checks(replace(plan, target="phone"), speeds)
    assert not parity_checks(plan, {})


GAIN = BlockGain(0.3, 0.4)


@pytest.mark.parametrize(("slow", "option"), [(0.02, 2), (0.0203, 2), (0.022, 0)])
def test_scales_per_block_ship_if_the_promise_is_kept(plan: Plan, slow: float, option: int) -> None:
    speeds: dict[tuple[str, DynamicOption], Speed] = {
        ("int8", 0): speed(90 * MB, [0.02] * 9),
        ("plan", 0): speed(90 * MB, [0.02] * 9),
        ("plan", 2): speed(90 * MB, [slow] * 9, 2),
    }
    decided = option_by_speed(plan, GAIN, speeds)
    assert decided.dynamic_option == option
    why = decided.notes[-1].code
    assert why == ("block-scales-taken" if option else "block-scales-against-parity")
    heavy = speeds | {("plan", 2): speed(99 * MB, [0.02] * 9, 2)}
    assert option_by_speed(plan, GAIN, heavy).dynamic_option == 0
    assert "times the RAM of uniform int8" in str(option_by_speed(plan, GAIN, heavy).notes[-1])
    # a budget in bytes promises no speed
    assert option_by_speed(replace(plan, limits=()), GAIN, speeds).dynamic_option == 2
    assert option_by_speed(plan, GAIN, {}).dynamic_option == 0


def test_scales_per_block_that_were_asked_for_are_held_to_the_same_setting(plan: Plan) -> None:
    speeds: dict[tuple[str, DynamicOption], Speed] = {
        ("int8", 0): speed(90 * MB, [0.02] * 9),
        ("int8", 2): speed(90 * MB, [0.024] * 9, 2),
        ("plan", 2): speed(90 * MB, [0.024] * 9, 2),
    }
    asked = replace(plan, dynamic_option=2)
    assert all(check.passed for check in parity_checks(asked, speeds))
    del speeds["int8", 2]
    assert not all(check.passed for check in parity_checks(asked, speeds))
