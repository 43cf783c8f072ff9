"""Decides whether a plan's int8 activations get a scale per block of the weights, from its gain and its cost."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from qplan.notes import Note, few, note
from qplan.rounding import EnginePath, Int8Activations
from qplan.rounding.rounder import Rounder
from qplan.run.plan import Plan
from qplan.sensitivity.joint import Variant, variant_losses
from qplan.sensitivity.kept_logits import KeptLogits
from qplan.sensitivity.metrics import TokenStats, join
from qplan.settings import DYNAMIC_OPTIONS, Arithmetic, DynamicOption, Progress

LEAST_GAIN = 0.1
"""Least share of the loss, in prefill and in decode, that ``dynamic_option`` 2 must save to be chosen by default."""

MOST_SLOWDOWN = 0.15
"""Largest share of decode speed that it may cost to be chosen by default."""

GAIN_TOKENS = 512
"""Held-out tokens that the gain is measured on at first."""

_DOUBT = 0.1
"""Distance to the least gain below which so many leave a doubt; it falls with their root."""

_PATHS: tuple[EnginePath, ...] = ("prefill", "decode")


@dataclass(frozen=True)
class BlockGain:
    """Ratio of a plan's joint losses under ``dynamic_option`` 2 and 0, in torch under memory low."""

    prefill: float
    decode: float

    @property
    def pays(self) -> bool:
        """Whether option 2 saves enough in both. Decode rounds more coarsely and may lose where prefill gains."""
        return max(self.prefill, self.decode) <= 1 - LEAST_GAIN


def measure_gain(
    plan: Plan,
    rounder: Rounder,
    heldout: NDArray[np.int64],
    kept: KeptLogits | None = None,
    progress: Progress | None = None,
    *,
    arithmetic: Arithmetic = "x86",
    half: bool = False,
) -> BlockGain:
    """Compute the plan's joint losses with both options in torch, on as many tokens as leave no doubt.

    Args:
        plan: a plan without formats that the engine garbles.
        rounder: chooses the integers.
        heldout: tokens, int64 ``[rows, seq_len]``.
        kept: what the model in FP32 says of them; None to compute it.
        progress: called with the passes that are done.
        arithmetic: of the target's back end.
        half: whether products of bfloat16 suffice, see `qplan.choosing.halves`.
    """
    # a power of two: rows of one step are then among those of the next
    step = 1 << (max(1, min(len(heldout), heldout.size // GAIN_TOKENS)).bit_length() - 1)
    rows, found = slice(0, None, step), dict[str, list[TokenStats]]()
    while True:
        reference = None if kept is None else kept.take(rows)
        losses = _losses(plan, rounder, heldout[rows], reference, progress, arithmetic=arithmetic, half=half)
        for label, stats in losses.items():
            found.setdefault(label, []).append(stats)
        gain = _gain({label: join(parts) for label, parts in found.items()})
        doubt = _DOUBT * math.sqrt(GAIN_TOKENS / heldout[::step].size)
        if step == 1 or abs(max(gain.prefill, gain.decode) - (1 - LEAST_GAIN)) > doubt:
            return gain
        rows, step = slice(step // 2, None, step), step // 2


def _losses(
    plan: Plan,
    rounder: Rounder,
    heldout: NDArray[np.int64],
    kept: KeptLogits | None,
    progress: Progress | None,
    *,
    arithmetic: Arithmetic,
    half: bool,
) -> dict[str, TokenStats]:
    """The plan's joint losses on both paths of the engine, with each option."""
    return variant_losses(
        rounder.loaded,
        torch.from_numpy(heldout),
        {
            f"{path} {option}": Variant(plan.formats, "low", Int8Activations(path, option, arithmetic), half)
            for path in _PATHS
            for option in DYNAMIC_OPTIONS
        },
        batch_size=4 if kept is None else 1,
        engine_embedding=True,
        rounder=rounder,
        reference=kept,
        progress=progress,
    )


def _gain(found: Mapping[str, TokenStats]) -> BlockGain:
    shares = {}
    for path in _PATHS:
        before, after = (found[f"{path} {option}"].kl_nats for option in DYNAMIC_OPTIONS)
        shares[path] = after / before if before else 1.0
    return BlockGain(shares["prefill"], shares["decode"])


def with_requested_option(plan: Plan, gain: BlockGain) -> Plan:
    """The plan with option 2, which the user requested."""
    return _noted(plan, 2, note("block-scales-asked-for", **asdict(gain)))


def with_measured_option(plan: Plan, gain: BlockGain, speed: float | None) -> Plan:
    """The plan with the default option: 2 if it saves `LEAST_GAIN` and costs at most `MOST_SLOWDOWN`, else 0.

    Args:
        plan: the chosen plan.
        gain: what option 2 gains.
        speed: ratio of decode speeds on the engine with options 2 and 0; None if not measured.
    """
    gained, least_speed = asdict(gain), 1 - MOST_SLOWDOWN
    if not gain.pays:
        return _noted(plan, 0, note("block-scales-gain-too-little", **gained, least_gain=LEAST_GAIN))
    if speed is None:
        return _noted(plan, 0, note("block-scales-not-timed", **gained))
    if speed < least_speed:
        return _noted(plan, 0, note("block-scales-too-slow", **gained, speed=speed, least_speed=least_speed))
    return _noted(plan, 2, note("block-scales-taken", **gained, speed=speed, least_speed=least_speed))


def with_derived_option(plan: Plan, gain: BlockGain, slowdown: float) -> Plan:
    """The plan for a target that cannot be timed here: option 2 if it saves `LEAST_GAIN`.

    Args:
        plan: the chosen plan, whose limits on times already count what the option takes.
        gain: what option 2 gains under the target's arithmetic.
        slowdown: ratio of decode times with options 2 and 0, by the target's data.
    """
    gained = asdict(gain)
    if not gain.pays:
        return _noted(plan, 0, note("block-scales-gain-too-little", **gained, least_gain=LEAST_GAIN))
    return _noted(plan, 2, note("block-scales-derived", **gained, target=plan.target, times=slowdown))


def held_back(plan: Plan, why: Note) -> Plan:
    """The plan with option 0, though option 2 pays, for a reason outside of its own speed."""
    return _noted(plan, 0, why)


def without_block_scales(plan: Plan, names: list[str]) -> Plan:
    """The plan with option 0, since the engine garbles the formats of the tensors ``names`` under 2."""
    tensors, others = few(names)
    return _noted(
        plan, 0, note("block-scales-garbled", format=plan.formats[names[0]].name, tensors=tensors, others=others)
    )


def _noted(plan: Plan, option: DynamicOption, why: Note) -> Plan:
    return replace(plan, dynamic_option=option).noted(why)
