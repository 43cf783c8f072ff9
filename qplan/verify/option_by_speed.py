"""Decides on ``dynamic_option`` by what the engine measured of the plan, and of the uniform model it is held to."""

from __future__ import annotations

from dataclasses import asdict

from qplan.choosing.activations import BlockGain, held_back, with_measured_option
from qplan.notes import note
from qplan.run.plan import Plan
from qplan.run.speeds import SLOWER
from qplan.verify.parity import PHASES, Speeds, rivals_of


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
        for phase in PHASES:
            spread = None if (rival := speeds.get((name, 0))) is None else slow.against(rival, phase)
            if spread is not None and spread.times > SLOWER:
                told = {"times": spread.times, "phase": phase, "uniform": name}
                return held_back(plan, note("block-scales-against-parity", **asdict(gain), **told))
    return decided
