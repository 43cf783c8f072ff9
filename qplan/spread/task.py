"""What runs in a worker: opens work once per process, does one task, and sends errors back as what they are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from qplan.errors import QplanError

_OPEN: dict[str, Callable[[Any], Any]] = {}
"""The work that this process does, by its key: one, since it may hold a model."""


@dataclass(frozen=True)
class Failure:
    """An error that a task raised on purpose. Ray would wrap it in its own, with a trace of the worker."""

    kind: type[QplanError]
    message: str

    def error(self, label: str) -> QplanError:
        """The error, with what it is about."""
        return self.kind(self.message if label in self.message else f"{label}: {self.message}")


def perform(key: str, work: list[Any], item: object, threads: int, parts: int | None = None) -> Any:  # noqa: ANN401
    """Do one task.

    Args:
        key: of the work.
        work: a reference to it, in a list so that Ray fetches it only where it is not open yet.
        item: of the task.
        threads: to compute on.
        parts: of the result, if these are to be kept apart: returned after the failure, if any.
    """
    import ray  # noqa: PLC0415 - an extra
    import torch  # noqa: PLC0415 - slow, and not for --help

    torch.set_num_threads(threads)
    try:
        if key not in _OPEN:
            _OPEN.clear()
            _OPEN[key] = ray.get(work[0]).open()
        found = _OPEN[key](item)
    except QplanError as error:
        failure = Failure(type(error), str(error))
        return failure if parts is None else (failure, *[None] * parts)
    return found if parts is None else (None, *found)
