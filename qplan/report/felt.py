"""What a user feels of a model besides its loss: RAM and speed, measured or predicted, against another model."""

from __future__ import annotations

from collections.abc import Sequence

from qplan.cost.footprint import Footprint
from qplan.report import notation
from qplan.report.notation import quotient
from qplan.report.words import ENGLISH, Words
from qplan.run.plan import Plan
from qplan.run.speeds import Phase
from qplan.run.verification import Speed


def ram_of(speed: Speed | None, predicted: Footprint | None) -> int | None:
    """Growth of resident memory by loading, or the predicted RAM of the weights if it was not measured."""
    if speed is not None:
        return speed.ram_bytes
    return None if predicted is None else predicted.ram_bytes


def time_against(one: Speed, other: Speed, phase: Phase, words: Words = ENGLISH) -> str:
    """How much longer a model takes than another, with the spread of rounds, or that they do not differ beyond it."""
    spread = one.against(other, phase)
    if spread is None:
        return notation.ratio(quotient(_rate(other, phase), _rate(one, phase)))
    if not spread.differs:
        return words("no difference")
    return f"{notation.ratio(spread.times)} ({spread.low:.2f}\N{EN DASH}{spread.high:.2f})"


def predicted_time_against(one: Footprint, other: Footprint, phase: Phase) -> str:
    """How much longer a model is predicted to take than another."""
    return notation.ratio(quotient(_predicted(one, phase), _predicted(other, phase)))


def nearest_footprint(plan: Plan) -> tuple[str, Footprint] | None:
    """The uniform export that a plan's RAM and times are told against: the budget's, or the nearest in bytes."""
    known = [(point, point.footprint) for point in plan.uniform if point.footprint is not None]
    if not known:
        return None
    named = [pair for pair in known if pair[0].name == plan.budget.strip().lower()]
    point, found = min(named or known, key=lambda pair: abs(pair[0].total_bytes - plan.files.total))
    return point.name, found


def shares_of(plan: Plan) -> Sequence[tuple[str, float]]:
    """RAM, decode and prefill time of a plan over those of `nearest_footprint`, predicted; none if not known."""
    near = nearest_footprint(plan)
    if plan.footprint is None or near is None:
        return ()
    own, other = plan.footprint, near[1]
    return (
        ("RAM", own.ram_bytes / other.ram_bytes),
        ("decode", own.decode / other.decode),
        ("prefill", own.prefill / other.prefill),
    )


def _rate(speed: Speed, phase: Phase) -> float:
    return speed.prefill_tokens_per_s if phase == "prefill" else speed.decode_tokens_per_s


def _predicted(found: Footprint, phase: Phase) -> float:
    return found.prefill if phase == "prefill" else found.decode
