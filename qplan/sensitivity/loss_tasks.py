"""Losses of tensors with one input as a task: everything that it needs is sent along, so workers need no files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch

from qplan.formats import QuantFormat
from qplan.rounding import Int8Activations
from qplan.rounding.curvature import Curvature
from qplan.rounding.gptq import SWEEPS
from qplan.sensitivity.layer_losses import losses_of
from qplan.sensitivity.seen import FormatLoss, Seen
from qplan.spread.work import Task, Workers

_COPIES, _MATRICES = 6, 12
"""Copies of the inputs, and of their moments in float32, that a group takes."""


@dataclass(frozen=True)
class LossItem:
    """Tensors with one input, and what is asked about them; see `losses_of`."""

    group: Sequence[Seen]
    formats: Sequence[QuantFormat]
    rounding: str
    curvature: Curvature | None
    columns: torch.Tensor | None
    sweeps: int = SWEEPS
    parts: bool = False

    def losses(self, activations: Int8Activations | None) -> list[dict[QuantFormat, FormatLoss]]:
        """By tensor, the losses by format."""
        return losses_of(
            self.group,
            self.formats,
            self.rounding,
            self.curvature,
            activations=activations,
            columns=self.columns,
            sweeps=self.sweeps,
            parts=self.parts,
        )


@dataclass(frozen=True)
class FindLosses:
    """Finds the losses of one item after the other."""

    activations: Int8Activations | None
    memory_bytes: int
    threads: int = field(default_factory=torch.get_num_threads)

    def open(self) -> Callable[[LossItem], list[dict[QuantFormat, FormatLoss]]]:
        """Takes an item."""
        return lambda item: item.losses(self.activations)


def losses_by(
    workers: Workers, items: Sequence[LossItem], activations: Int8Activations | None
) -> Iterator[list[dict[QuantFormat, FormatLoss]]]:
    """The losses of items, in their order, found by the workers of a cluster."""
    sizes = [
        4 * (_COPIES * view.inputs.numel() + (0 if view.judge is None else _MATRICES * view.judge.numel()))
        for item in items
        for view in item.group
    ]
    work = FindLosses(activations, max(sizes, default=0))
    tasks = [Task(item, ", ".join(view.name for view in item.group)) for item in items]
    found = dict(workers.run(work, tasks))
    yield from (found[place] for place in range(len(items)))
