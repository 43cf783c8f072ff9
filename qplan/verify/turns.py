"""Times built models by turns: the plan and its uniform rivals in the same minutes, so that their speeds compare."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from qplan.cost.free import free_memory
from qplan.cost.target import DEFAULT_TARGET, find_target
from qplan.formats import Formats, applies
from qplan.mnn.engine.session import EngineSession
from qplan.mnn.runtime import RuntimeConfig
from qplan.run.speeds import Round
from qplan.run.verification import Speed
from qplan.settings import DynamicOption, Precision
from qplan.verify.measure import Trial

MOST_ROUNDS, LEAST_ROUNDS = 9, 3
ENOUGH_S = 30.0
"""Seconds after which no further round is begun, but for the least: rounds of a large model even a load out by
themselves."""

_SHARE = 0.5
"""Of free memory, what models may take that are loaded together; beyond it each is loaded anew in every round."""


@dataclass(frozen=True)
class Contestant:
    """A built model under one ``dynamic_option`` and ``precision``."""

    name: str
    folder: Path
    formats: Formats
    dynamic_option: DynamicOption = 0
    precision: Precision = "low"

    @property
    def timed_as(self) -> tuple[object, ...]:
        """Equal for two models that take the same time: the engine computes with the same formats."""
        target = find_target(DEFAULT_TARGET)  # where no precision takes longer
        option = self.dynamic_option if applies("low", self.formats) else 0
        return option, *((name, target.timed_as(fmt)) for name, fmt in sorted(self.formats.items()))


def speeds_in_turns(
    contestants: Sequence[Contestant], trial: Trial, context: int, *, most_bytes: int | None = None
) -> dict[tuple[str, DynamicOption], Speed]:
    """Time models by turns under memory low, in processor time of the engine's thread where it has but one.

    Of models whose formats take the same time one is timed, and all share its figures. RAM is each one's own.

    Args:
        contestants: what to time, each under a name and option of its own.
        trial: counts of tokens, and threads.
        context: of the models.
        most_bytes: memory that their engines may take together; None for a share of what is free.

    Raises:
        ToolError: the engine failed.
    """
    first: dict[tuple[object, ...], Contestant] = {}
    for one in contestants:
        first.setdefault(one.timed_as, one)
    timed = tuple(first.values())
    size = sum(path.stat().st_size for one in contestants for path in one.folder.glob("*") if path.is_file())
    together = 2 * size <= (_SHARE * free_memory() if most_bytes is None else most_bytes)
    rounds: dict[tuple[str, DynamicOption], list[Round]] = {_key(one): [] for one in timed}
    ram: dict[tuple[str, DynamicOption], list[int]] = {_key(one): [] for one in contestants}
    start = time.monotonic()
    with ExitStack() as stack:
        engines = {_key(one): stack.enter_context(_engine(one, trial, context)) for one in timed if together}
        for turn in range(MOST_ROUNDS):
            if turn >= LEAST_ROUNDS and time.monotonic() - start > ENOUGH_S:
                break
            for one in timed:
                with _at_hand(engines, one, trial, context) as engine:
                    rounds[_key(one)].append(_round(engine, trial, context, first=turn == 0 or not together))
                    if turn == 0 or not together:
                        ram[_key(one)].append(engine.ram_bytes)
    for one in contestants:
        if not ram[_key(one)]:
            with _engine(one, trial, context) as engine:
                ram[_key(one)].append(engine.ram_bytes)
    session = secrets.token_hex(8)
    found = {}
    for one in contestants:
        mine = tuple(rounds[_key(first[one.timed_as])])
        prompt, _ = trial.timed_tokens(context)
        found[_key(one)] = Speed(
            memory="low",
            threads=trial.threads,
            prompt_tokens=prompt,
            prefill_tokens_per_s=prompt / median(turn.prefill_s for turn in mine),
            decode_tokens_per_s=1 / median(turn.decode_s for turn in mine),
            ram_bytes=int(median(ram[_key(one)])),
            dynamic_option=one.dynamic_option,
            rounds=mine,
            session=session,
        )
    return found


def _key(one: Contestant) -> tuple[str, DynamicOption]:
    return one.name, one.dynamic_option


def _engine(one: Contestant, trial: Trial, context: int) -> EngineSession:
    runtime = RuntimeConfig("low", one.precision, trial.threads, one.dynamic_option)
    return EngineSession(one.folder, runtime, context=context)


@contextmanager
def _at_hand(
    engines: Mapping[tuple[str, DynamicOption], EngineSession], one: Contestant, trial: Trial, context: int
) -> Iterator[EngineSession]:
    """The engine that has a model loaded, or one that is started for this turn."""
    if _key(one) in engines:
        yield engines[_key(one)]
        return
    with _engine(one, trial, context) as engine:
        yield engine


def _round(engine: EngineSession, trial: Trial, context: int, *, first: bool) -> Round:
    prompt, decode = trial.timed_tokens(context)
    sample = engine.measure_speed(prompt, decode, 1, own_time=trial.threads == 1, warm_up=first)
    return Round(sample.prefill_s[0], median(sample.decode_s))
