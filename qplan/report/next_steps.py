"""What to do with a plan once its report is read: sentences, each with the command that does it."""

from __future__ import annotations

from dataclasses import dataclass

from qplan.report import notation
from qplan.report.shares import loss_share
from qplan.report.words import ENGLISH, Words
from qplan.run.frontier import Frontier, FrontierPoint
from qplan.run.plan import Plan
from qplan.run.verification import Verification

_MORE, _LESS = 1.08, 0.92
"""Least and most bytes, over the plan's, of the frontier's plans that are named as larger and smaller."""


@dataclass(frozen=True)
class Step:
    """One thing to do."""

    said: str
    command: str


def next_steps(
    plan: Plan, verification: Verification | None, frontier: Frontier | None, words: Words = ENGLISH
) -> tuple[Step, ...]:
    """What may come next; the commands work in the folder of the report."""
    steps = []
    if verification is None:
        steps.append(Step(words("Build the model and prove it on the engine:"), "qplan emit --plan plan.json --run .."))
    else:
        steps += [
            Step(words("Let it answer; the folder “model” is all that ships:"), _RUN),
            Step(
                words("Measure it again, or on a machine where it is to run, or beside another folder:"),
                "qplan bench model",
            ),
        ]
    if frontier is not None:
        steps += [_other(point, plan, words) for point in _others(plan, frontier)]
    return (*steps, Step(words("See why a tensor has its bits:"), "qplan explain plan.json --run .."))


_RUN = 'qplan run model "..."'


def _others(plan: Plan, frontier: Frontier) -> list[FrontierPoint]:
    """The next smaller and the next larger plan that differ noticeably."""
    size = plan.files.total
    smaller = [point for point in frontier.points if point.total_bytes <= _LESS * size]
    larger = [point for point in frontier.points if point.total_bytes >= _MORE * size]
    better = [point for point in larger if point.joint_nats < plan.predicted_nats]
    return smaller[-1:] + better[:1]


def _other(point: FrontierPoint, plan: Plan, words: Words) -> Step:
    budget = f"{point.total_bytes / 1e6:.3g}MB" if point.total_bytes < 1e9 else f"{point.total_bytes / 1e9:.4g}GB"
    share = point.joint_nats / plan.predicted_nats if plan.predicted_nats else None
    values = {"size": notation.size(point.total_bytes), "lost": loss_share(share, words)}
    larger = point.total_bytes > plan.files.total
    freely = any(limit.of for limit in plan.limits)  # and a budget that names no uniform export promises files alone
    if larger and freely:
        said = words(
            "Larger, {size} of files and any RAM and speed, predicted to lose {lost} what this plan loses:", **values
        )
    elif larger:
        said = words("Larger, {size} of files, predicted to lose {lost} what this plan loses:", **values)
    elif freely:
        said = words(
            "Smaller, {size} of files but any RAM and speed, predicted to lose {lost} what this plan loses:", **values
        )
    else:
        said = words("Smaller, {size} of files, predicted to lose {lost} what this plan loses:", **values)
    return Step(said, f"qplan emit --budget {budget} --run ..")
