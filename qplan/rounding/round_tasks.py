"""Rounding as tasks for other processes: a tensor with all its formats each, kept by the task that rounds it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from qplan.formats import QuantFormat
from qplan.model.reopened import weight_bytes
from qplan.rounding.rounder import Rounder
from qplan.roundings import needs_tokens

_COPIES = 8
"""Copies of a tensor in float32 that rounding it takes: candidates, their errors and integers."""

_MATRICES = 6
"""Copies of its inputs' moments in float32: as read, in order, its factor, the judge's, and two on the way."""

RoundItem = tuple[str, tuple[QuantFormat, ...]]
"""A tensor and formats."""


@dataclass(frozen=True)
class RoundTensors:
    """Rounds tensors and writes each, like `Rounder.store`, so that it is held by the rounder's cache.

    Moments are read from the run folder, where the rounded tensors are written, each to a file of its own.
    """

    rounder: Rounder
    threads: int = 1
    """One, as everywhere: the integers must not depend on it."""

    @property
    def memory_bytes(self) -> int:
        """RAM of a process: the model, and a tensor with its inputs' moments."""
        tensors = self.rounder.loaded.card.tensors
        largest = max(4 * _COPIES * spec.out_features * spec.in_features for spec in tensors)
        matrix = (
            max(4 * _MATRICES * spec.in_features**2 for spec in tensors) if needs_tokens(self.rounder.rounding) else 0
        )
        return weight_bytes(self.rounder.loaded) + largest + matrix

    def open(self) -> Callable[[RoundItem], int]:
        """Rounds a tensor to the formats that are not kept yet; returns how many were asked for."""

        def run(item: RoundItem) -> int:
            name, formats = item
            for fmt in formats:
                if self.rounder.cache is None or not self.rounder.cache.holds(name, fmt):
                    self.rounder.store(name, fmt)
            return len(formats)

        return run


def by_tensor(wanted: Sequence[tuple[str, QuantFormat]]) -> list[RoundItem]:
    """Tensors with the formats that each is wanted in."""
    formats: dict[str, list[QuantFormat]] = {}
    for name, fmt in wanted:
        formats.setdefault(name, []).append(fmt)
    return [(name, tuple(own)) for name, own in formats.items()]
