"""What the harness found, as one record a metric."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from qplan.errors import MeasurementError


@dataclass(frozen=True)
class Value:
    """A metric of one model."""

    value: float
    error: float | None
    """The harness's standard error over samples; None where it has none."""


@dataclass(frozen=True)
class TaskScore:
    """A metric of a task, or of a group of tasks, of the folder and of its reference."""

    task: str
    metric: str
    filter: str
    """What the harness did with answers before it judged them; ``none`` for nothing."""
    samples: int | None
    """Of the task that were judged; None for a group."""
    shots: int | None
    """Solved examples in a prompt; None for a group whose tasks differ."""
    higher_is_better: bool | None
    """None where the harness does not say."""
    folder: Value
    reference: Value | None


def task_scores(folder: Mapping[str, Any], reference: Mapping[str, Any] | None) -> tuple[TaskScore, ...]:
    """Results of the harness, as its ``simple_evaluate`` returns them.

    Args:
        folder: of the MNN model.
        reference: of the Hugging Face model, on the same tasks; None without one.

    Raises:
        MeasurementError: a metric that only one of them has.
    """
    theirs = None if reference is None else _values(reference)
    found = []
    for (task, key), value in _values(folder).items():
        if theirs is not None and (task, key) not in theirs:
            msg = f"{task}: the harness gives {key} of the folder, and none of the reference; report this"
            raise MeasurementError(msg)
        metric, _, name = key.partition(",")
        found.append(
            TaskScore(
                task=task,
                metric=metric,
                filter=name or "none",
                samples=folder.get("n-samples", {}).get(task, {}).get("effective"),
                shots=folder.get("n-shot", {}).get(task),
                higher_is_better=folder.get("higher_is_better", {}).get(task, {}).get(metric),
                folder=value,
                reference=None if theirs is None else theirs[task, key],
            )
        )
    return tuple(found)


def _values(results: Mapping[str, Any]) -> dict[tuple[str, str], Value]:
    """Every number, by task and ``metric,filter``."""
    found = {}
    for task, metrics in results["results"].items():
        for key, value in metrics.items():
            metric, comma, name = key.partition(",")
            if not comma or metric.endswith("_stderr") or isinstance(value, str):
                continue
            error = metrics.get(f"{metric}_stderr,{name}")
            told = None if error is None or isinstance(error, str) else float(error)
            found[task, key] = Value(float(value), told)
    return found
