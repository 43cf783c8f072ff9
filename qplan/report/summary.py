"""The head of the report: the models that are compared, the verdict, the tiles."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

from qplan.cost.file_bytes import FileBytes
from qplan.cost.footprint import Footprint
from qplan.errors import InputError
from qplan.report import notation
from qplan.report.felt import predicted_time_against, ram_of, time_against
from qplan.report.notation import quotient
from qplan.report.shares import is_same, loss_share
from qplan.report.words import ENGLISH, Words
from qplan.run.plan import Plan
from qplan.run.speeds import Phase
from qplan.run.verification import BuiltModel, Speed, Verification, best_built
from qplan.settings import NOTHING_NATS
from qplan.uniform import UNIFORM_NAMES, UniformExport

PLAN = "plan"


@dataclass(frozen=True)
class Contender:
    """The plan or a uniform model, with everything that is known about it."""

    name: str
    """``plan``, or the name of a uniform model such as ``int8``."""
    memory: str
    """Memory setting of the plan, under which losses are compared."""
    total_bytes: int
    files: FileBytes | None
    """Sizes of the files; None if only the total is known."""
    predicted_nats: float | None
    """Sum of single losses."""
    built: BuiltModel | None
    """Measurements on the engine; None if it was not built."""
    footprint: Footprint | None = None
    """Predicted RAM and relative times on the plan's target; None if not known."""

    @property
    def is_plan(self) -> bool:
        """Whether this is the plan."""
        return self.name == PLAN

    @property
    def label(self) -> str:
        """Name in tables: ``Plan``, ``INT8``."""
        return "Plan" if self.is_plan else self.name.upper()

    @property
    def measured_nats(self) -> float | None:
        """Loss on the engine in one pass per sequence, None if it was not run."""
        accuracy = None if self.built is None else self.built.accuracy(self.memory)
        return None if accuracy is None else accuracy.kl_nats

    @property
    def emulated_nats(self) -> float | None:
        """Loss that torch computes for the same weights."""
        return None if self.built is None else self.built.emulated_nats.get(self.memory)

    @property
    def loss_nats(self) -> float | None:
        """The measured loss, or the predicted one if it was not run."""
        return self.predicted_nats if self.measured_nats is None else self.measured_nats

    @property
    def speed(self) -> Speed | None:
        """Speed on the engine."""
        return None if self.built is None else self.built.speed


def name_of(model: Contender, words: Words) -> str:
    """What a model is called in the report's language."""
    return words("Plan") if model.is_plan else model.label


def contenders(plan: Plan, verification: Verification | None) -> tuple[Contender, ...]:
    """The plan first, then the uniform models from wide to narrow, built or only predicted."""
    built = {} if verification is None else {model.name: model for model in verification.models}
    own = built.pop(PLAN, None)
    rows = [
        Contender(
            PLAN, plan.memory, (own or plan).files.total, (own or plan).files, plan.predicted_nats, own, plan.footprint
        ),
    ]
    uniform = []
    for point in plan.uniform:
        model = built.pop(point.name.split()[0], None)
        files = None if model is None else model.files
        total = point.total_bytes if files is None else files.total
        name = point.name.split()[0]
        uniform.append(Contender(name, plan.memory, total, files, point.predicted_nats, model, point.footprint))
    uniform += [Contender(m.name, plan.memory, m.files.total, m.files, None, m) for m in built.values()]
    return tuple(rows + sorted(uniform, key=_width, reverse=True))


def _width(contender: Contender) -> tuple[int, int]:
    try:
        return UniformExport.parse(contender.name).body.bits, contender.total_bytes
    except InputError:
        return 0, contender.total_bytes


def baseline(plan: Plan, models: tuple[Contender, ...]) -> Contender | None:
    """MNN's plain uniform export to compare with: the one that the budget names, otherwise the nearest in bytes."""
    plain = set(UNIFORM_NAMES.values())
    uniform = [m for m in models if m.name in plain and m.loss_nats is not None]
    named = next((m for m in uniform if m.name == plan.budget.strip().lower()), None)
    own = models[0].total_bytes
    return named or min(uniform, key=lambda m: abs(math.log(m.total_bytes / own)), default=None)


def best_rival(plan: Plan, models: tuple[Contender, ...]) -> Contender | None:
    """The uniform model within the plan's limits that loses least on the engine; None if none of them was built."""
    best = best_built(plan, {model.name: model.built for model in models if model.built is not None})
    return None if best is None else next(model for model in models if model.name == best.name)


class Status(StrEnum):
    """Whether the plan keeps its promises."""

    PASS = "pass"  # noqa: S105 - no password
    FAIL = "fail"
    UNVERIFIED = "unverified"


@dataclass(frozen=True)
class Tile:
    """One number of the headline."""

    label: str
    value: str
    unit: str
    comparison: str
    """Comparison with the baseline or the reference; may be empty."""


@dataclass(frozen=True)
class Verdict:
    """The headline."""

    status: Status
    stamp: str
    """The status in a word."""
    sentence: str
    checks: str
    """Says how many checks passed, or that none was made."""
    tiles: tuple[Tile, ...]


def verdict(plan: Plan, verification: Verification | None, words: Words = ENGLISH) -> Verdict:
    """Sum a plan up for someone who decides whether to ship it."""
    models = contenders(plan, verification)
    own, base = models[0], baseline(plan, models)
    like = base if base is None or (base.measured_nats is None) == (own.measured_nats is None) else None
    status, stamp, checks = _status(verification, words)
    sentence = words.join(_sentence(own, like, base, words), _against_rival(own, best_rival(plan, models), base, words))
    return Verdict(status, stamp, sentence, checks, _tiles(own, like, base, words))


def _sentence(own: Contender, like: Contender | None, base: Contender | None, words: Words) -> str:
    numbers = {"size": notation.size(own.total_bytes), "loss": notation.loss(own.loss_nats)}
    if own.measured_nats is None:
        start = words("{size}, KL {loss} nats/token predicted, not built", **numbers)
    else:
        start = words("{size}, KL {loss} nats/token on the engine", **numbers)
    if base is None:
        return words("{start}.", start=start)
    share = quotient(own.total_bytes, base.total_bytes)
    said = {"start": start, "share": notation.ratio(share), "base": base.label}
    if like is None or quotient(own.loss_nats, like.loss_nats) is None:
        same = words("{start}, the same size as uniform {base}.", **said)
        other = words("{start}, at {share} the bytes of uniform {base}.", **said)
    elif max(own.loss_nats or 0.0, like.loss_nats or 0.0) < NOTHING_NATS:
        same = words("{start}: no more loss than uniform {base}, at the same size.", **said)
        other = words("{start}: no more loss than uniform {base}, at {share} its bytes.", **said)
    else:
        said["lost"] = loss_share(quotient(own.loss_nats, like.loss_nats), words)
        same = words("{start}: {lost} the loss of uniform {base} at the same size.", **said)
        other = words("{start}: {lost} the loss of uniform {base} at {share} its bytes.", **said)
    return same if is_same(share) else other


def _against_rival(own: Contender, rival: Contender | None, base: Contender | None, words: Words) -> str:
    """Compares with the best uniform model that anyone could make within the same limits."""
    if rival is None or own.measured_nats is None or rival.measured_nats is None:
        return ""
    if rival is base:
        return words("No uniform model within the same limits is better than that one.")
    if max(own.measured_nats, rival.measured_nats) < NOTHING_NATS:
        return words("The best uniform model within the same limits, {rival}, loses as little.", rival=rival.label)
    return words(
        "The best uniform model within the same limits is {rival}: {lost} its loss.",
        rival=rival.label,
        lost=loss_share(quotient(own.measured_nats, rival.measured_nats), words),
    )


def _status(verification: Verification | None, words: Words) -> tuple[Status, str, str]:
    if verification is None:
        said = words("Not built, so nothing was checked on the engine")
        return Status.UNVERIFIED, words("NOT VERIFIED"), said
    failed = sum(not check.passed for check in verification.checks)
    count = len(verification.checks)
    if not count:
        return Status.FAIL, words("FAIL"), words("No promise was checked")
    if failed:
        return Status.FAIL, words("FAIL"), words("{failed} of {count} checks failed", failed=failed, count=count)
    return Status.PASS, words("PASS"), words("All {count} checks passed", count=count)


def _tiles(own: Contender, like: Contender | None, base: Contender | None, words: Words) -> tuple[Tile, ...]:
    def against(value: float | None, other: float | None) -> str:
        share = quotient(value, other)
        if share is None or base is None:
            return ""
        return _share_of(share, base.label, words)

    value, _, unit = notation.size(own.total_bytes).partition(" ")
    measured = own.measured_nats is not None
    kind = words("KL, memory {memory}", memory=own.memory) if measured else words("KL, predicted")
    nothing = like is not None and max(own.loss_nats or 0.0, like.loss_nats or 0.0) < NOTHING_NATS
    compared = "" if nothing else against(own.loss_nats, None if like is None else like.loss_nats)
    tiles = [
        Tile(words("Size"), value, unit, against(own.total_bytes, None if base is None else base.total_bytes)),
        Tile(kind, notation.loss(own.loss_nats), "nats/token", compared),
    ]
    accuracy = None if own.built is None else own.built.accuracy(own.memory)
    other = None if base is None or base.built is None else base.built.accuracy(own.memory)
    if accuracy is not None:
        top, _, sign = notation.percent(accuracy.top1).partition(" ")
        beside = (
            ""
            if other is None
            else words("{share} uniform {base}", share=notation.percent(other.top1), base=base.label if base else "")
        )
        tiles.append(Tile(words("Same top token"), top, sign, beside))
    return (*tiles[:1], *_felt_tiles(own, base, words), *tiles[1:])


def _felt_tiles(own: Contender, base: Contender | None, words: Words) -> list[Tile]:
    """RAM and speeds beside the baseline's: measured, or predicted if the plan was not built."""
    mine, other = own.speed, None if base is None else base.speed
    name = "" if base is None else base.label
    told = [own, *([] if base is None else [base])]
    ram = [ram_of(model.speed if mine is not None else None, model.footprint) for model in told]
    if ram[0] is None:
        return []
    value, _, unit = notation.size(ram[0]).partition(" ")
    share = quotient(ram[0], ram[-1]) if base is not None and (mine is None) == (other is None) else None
    beside = "" if share is None else _share_of(share, name, words)
    tiles = [Tile(words("RAM to load") if mine is not None else words("RAM, predicted"), value, unit, beside)]
    phases: tuple[tuple[Phase, str], ...] = (("decode", words("Decode")), ("prefill", words("Prefill")))
    for phase, label in phases:
        if mine is not None:
            rate = mine.decode_tokens_per_s if phase == "decode" else mine.prefill_tokens_per_s
            time = "" if other is None else _beside(time_against(mine, other, phase, words), name, words)
            tiles.append(Tile(label, notation.speed(rate), words("tokens/s"), time))
        elif own.footprint is not None and base is not None and base.footprint is not None:
            time = predicted_time_against(own.footprint, base.footprint, phase)
            tiles.append(Tile(words("{phase}, predicted", phase=label), time, "", words("time of {base}", base=name)))
    return tiles


def _share_of(share: float, base: str, words: Words) -> str:
    if is_same(share):
        return words("same as uniform {base}", base=base)
    return words("{share} uniform {base}", share=notation.ratio(share), base=base)


def _beside(time: str, base: str, words: Words) -> str:
    if time == words("no difference"):
        return words("no difference to {base}", base=base)
    return words("{time} the time of {base}", time=time, base=base)
