"""Decides on ``dynamic_option`` by what the engine measured of the plan, and of the uniform model it is held to."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict

from qplan.choosing.activations import BlockGain, held_back, with_measured_option
from qplan.notes import note
from qplan.run.plan import Plan
from qplan.run.speeds import SLOWER
from qplan.run.verification import Speed
from qplan.verify.parity import PHASES, Speeds, rivals_of, takes_more_ram


def option_by_speed(plan: Plan, gain: BlockGain, speeds: Speeds) -> Plan:
    """The plan with option 2 if it pays, and is no slower than the budget promises; else with option 0.

    Args:
        plan: what was built.
        gain: what option 2 gains.
        speeds: of the plan with both options, and of its rivals, from one session; without them it keeps option 0.
    """
    slow, fast = speeds.get(("plan", 2)), speeds.get(("plan", 0))
    if slow is None or fast is None:
        return with_measured_option(plan, gain, None)
    decided = with_measured_option(plan, gain, slow.decode_tokens_per_s / fast.decode_tokens_per_s)
    if decided.dynamic_option != 2:
        return decided
    for name in rivals_of(plan):
        rival = speeds.get((name, 0))
        for resource, times in () if rival is None else _beyond(slow, rival):
            why = note("block-scales-against-parity", **asdict(gain), times=times, resource=resource, uniform=name)
            return held_back(plan, why)
    return decided


def _beyond(mine: Speed, rival: Speed) -> Iterator[tuple[str, float]]:
    """What a model takes more of than a rival, by more than the budget's promise allows, and how many times as much."""
    if takes_more_ram(mine, rival):
        yield "RAM", mine.ram_bytes / rival.ram_bytes
    for phase in PHASES:
        spread = mine.against(rival, phase)
        if spread is not None and spread.times > SLOWER and spread.more_s > spread.least_felt_s:
            yield f"{phase} time", spread.times
