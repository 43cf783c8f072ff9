"""What a budget that names a uniform export promises of RAM and speed, held against both models on the engine."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from qplan.cost.target import DEFAULT_TARGET
from qplan.formats import QuantFormat, garbled, has_options
from qplan.notes import note
from qplan.run.plan import Plan
from qplan.run.speeds import SLOWER, Phase
from qplan.run.verification import Check, Speed
from qplan.settings import DYNAMIC_OPTIONS, DynamicOption
from qplan.uniform import COMPARED_INTEGERS, UNIFORM_BITS, uniform_formats
from qplan.verify.bench import BuildBench
from qplan.verify.turns import Contestant, speeds_in_turns
from qplan.verify.uniform_builds import UniformBuilds

Speeds = Mapping[tuple[str, DynamicOption], Speed]
"""By model and ``dynamic_option``."""

PHASES: tuple[Phase, ...] = ("decode", "prefill")

MORE_RAM = 1.03
"""Ratio of resident memory up to which a model counts as taking no more."""

RAM_NOISE_BYTES = 1_000_000
"""What two models of a few megabytes may differ in besides their weights: a folded head's op, pages."""


def rivals_of(plan: Plan) -> tuple[str, ...]:
    """The uniform exports whose RAM and speed a plan promises to keep to, on the machine of this proof."""
    here = plan.target == DEFAULT_TARGET and plan.memory == "low"
    return tuple(dict.fromkeys(limit.of for limit in plan.limits if limit.of)) if here else ()


def timed_by_turns(
    bench: BuildBench, plan: Plan, model: Path, builds: UniformBuilds
) -> dict[tuple[str, DynamicOption], Speed]:
    """Time the built plan with each ``dynamic_option`` that it may have, and uniform models, by turns.

    Args:
        bench: what is measured, and how.
        plan: what was built.
        model: its folder.
        builds: the uniform models.

    Raises:
        ToolError: the engine failed.
    """
    if "low" not in bench.settings(plan.formats):
        return {}
    options: tuple[DynamicOption, ...] = DYNAMIC_OPTIONS if has_options(plan.formats) else (0,)
    contestants = list(_uniform(bench, plan, builds))
    contestants += [Contestant("plan", model, plan.formats, option, plan.precision) for option in options]
    names = ", ".join(dict.fromkeys(one.name for one in contestants))
    bench.say(f"speed by turns, on an engine thread of its own: {names}")
    most = None if bench.memory is None else bench.memory.free_bytes
    return speeds_in_turns(contestants, bench.trial, bench.loaded.card.context, most_bytes=most)


def _uniform(bench: BuildBench, plan: Plan, builds: UniformBuilds) -> Iterator[Contestant]:
    """Integers of those that every plan is compared with, and the rivals, also as the plan ships where asked for."""
    rivals = rivals_of(plan)
    for name in dict.fromkeys((*COMPARED_INTEGERS, *rivals)):
        formats = uniform_of(builds.bench, UNIFORM_BITS[name])
        if "low" not in bench.settings(formats):
            continue
        yield Contestant(name, builds.folder(name, formats), formats)
        if name in rivals and plan.dynamic_option == 2 and not garbled(formats):
            yield Contestant(name, builds.folder(name, formats), formats, 2)


def uniform_of(bench: BuildBench, bits: int) -> dict[str, QuantFormat]:
    """Formats of a uniform model as the engine reads them."""
    return {name: bench.target.wide(fmt) for name, fmt in uniform_formats(bench.loaded.card, bits).items()}


def parity_checks(plan: Plan, speeds: Speeds) -> tuple[Check, ...]:
    """Whether the plan takes no more RAM and time than the uniform exports that its budget names.

    It is slower if it takes more than `SLOWER` times as long beyond the spread of rounds.
    """
    mine = speeds.get(("plan", plan.dynamic_option))
    checks: list[Check] = []
    for name in rivals_of(plan):
        asked = speeds.get((name, 2)) if plan.dynamic_option == 2 else None
        other = asked or speeds.get((name, 0))
        if mine is not None and other is not None:
            checks += [_ram_check(name, mine, other), *_speed_checks(name, mine, other)]
    return tuple(checks)


def takes_more_ram(mine: Speed, other: Speed) -> bool:
    """Whether a model takes more RAM than another, beyond what a promise allows."""
    return mine.ram_bytes > MORE_RAM * other.ram_bytes + RAM_NOISE_BYTES


def _ram_check(name: str, mine: Speed, other: Speed) -> Check:
    return Check(
        note("ram-of-uniform", uniform=name),
        not takes_more_ram(mine, other),
        note("ram-against-uniform", plan_bytes=mine.ram_bytes, uniform_bytes=other.ram_bytes, limit=MORE_RAM),
    )


def _speed_checks(name: str, mine: Speed, other: Speed) -> Sequence[Check]:
    found = []
    for phase in PHASES:
        spread = mine.against(other, phase)
        if spread is None:
            continue
        values = {"times": spread.times, "low": spread.low, "high": spread.high, "rounds": spread.rounds}
        if mine.rounds == other.rounds:
            told = note("same-timed-formats")
        elif spread.differs:
            told = note("time-against-uniform", **values, limit=SLOWER)
        else:
            told = note("no-difference-in-time", **values)
        promise = note("decode-of-uniform" if phase == "decode" else "prefill-of-uniform", uniform=name)
        found.append(Check(promise, not spread.slower, told))
    return found
