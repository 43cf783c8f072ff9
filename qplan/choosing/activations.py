"""Whether a plan's int8 activations get a scale per block of the weights: what that buys, and what it costs."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from qplan.notes import Note, few, note
from qplan.quantize import EnginePath, Int8Activations
from qplan.quantize.rounder import Rounder
from qplan.run.plan import Plan
from qplan.sensitivity.joint import joint_losses
from qplan.settings import DynamicOption

LEAST_GAIN = 0.1
"""Share of the loss that ``dynamic_option`` 2 must save, in prefill and in decode, to be taken unasked."""

MOST_SLOWDOWN = 0.15
"""Share of the decode speed that it may cost then."""

_PATHS: tuple[EnginePath, ...] = ("prefill", "decode")


@dataclass(frozen=True)
class BlockGain:
    """A plan's joint loss under ``dynamic_option`` 2, times that under 0, in torch; memory low."""

    prefill: float
    decode: float

    @property
    def pays(self) -> bool:
        """Whether it saves enough both ways: decode's steps are coarser, and what prefill gains it may lose."""
        return max(self.prefill, self.decode) <= 1 - LEAST_GAIN


def measure_gain(plan: Plan, rounder: Rounder, heldout: NDArray[np.int64]) -> BlockGain:
    """Compute the plan's joint losses with both options in torch.

    Args:
        plan: of formats that the engine does not garble.
        rounder: chooses the integers.
        heldout: int64 ``[rows, seq_len]``.
    """
    tokens = torch.from_numpy(heldout)

    def loss(path: EnginePath, option: DynamicOption) -> float:
        activations = Int8Activations(path, option)
        plans = {"": plan.formats}
        found = joint_losses(rounder.loaded, tokens, plans, "low", activations, engine_embedding=True, rounder=rounder)
        return found[""].kl_nats

    shares = {}
    for path in _PATHS:
        before, after = loss(path, 0), loss(path, 2)
        shares[path] = after / before if before else 1.0
    return BlockGain(shares["prefill"], shares["decode"])


def with_requested_option(plan: Plan, gain: BlockGain) -> Plan:
    """The plan with option 2, which the user wants whatever it costs."""
    return _noted(plan, 2, note("block-scales-asked-for", **asdict(gain)))


def with_measured_option(plan: Plan, gain: BlockGain, speed: float | None) -> Plan:
    """The plan with the option that the rule takes: 2 if it saves `LEAST_GAIN` and costs at most `MOST_SLOWDOWN`.

    Args:
        plan: what was chosen.
        gain: of option 2.
        speed: decode speed on the engine with option 2, times that with 0; None if it was not measured.
    """
    gained, least_speed = asdict(gain), 1 - MOST_SLOWDOWN
    if not gain.pays:
        return _noted(plan, 0, note("block-scales-gain-too-little", **gained, least_gain=LEAST_GAIN))
    if speed is None:
        return _noted(plan, 0, note("block-scales-not-timed", **gained))
    if speed < least_speed:
        return _noted(plan, 0, note("block-scales-too-slow", **gained, speed=speed, least_speed=least_speed))
    return _noted(plan, 2, note("block-scales-taken", **gained, speed=speed, least_speed=least_speed))


def without_block_scales(plan: Plan, names: list[str]) -> Plan:
    """The plan with option 0, since 2 garbles some of its formats."""
    tensors, others = few(names)
    return _noted(
        plan, 0, note("block-scales-garbled", format=plan.formats[names[0]].name, tensors=tensors, others=others)
    )


def with_note_on_losses(plan: Plan, measured_with: int) -> Plan:
    """The plan with a note where its predicted losses are those of another option than it ships with."""
    if plan.dynamic_option == measured_with:
        return plan
    return plan.noted(note("losses-of-other-option", dynamic_option=measured_with))


def _noted(plan: Plan, option: DynamicOption, why: Note) -> Plan:
    return replace(plan, dynamic_option=option).noted(why)
