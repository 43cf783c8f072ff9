"""Results that stay with the workers that made them until a later task asks for them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Held:
    """A handle of a result in Ray's object store. It may be copied to other processes."""

    reference: Any


def value_of(held: Held) -> Any:  # noqa: ANN401 - whatever a task returned
    """The result; fetched from the worker that has it."""
    import ray  # noqa: PLC0415 - an extra

    return ray.get(held.reference)
