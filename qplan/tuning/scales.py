"""Trains the scales and zeros of a plan end to end: all at once, on the loss of the whole model.

Integers stay. What is minimized is the KL divergence from the float model on calibration tokens, with the engine's int8
activations in the way under memory low: rounding lets gradients straight through (`qplan.tuning.straight`). What
trains are floats, but the model always computes with their values in the width that MNN stores.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from torch import Tensor

from qplan.formats import QuantFormat
from qplan.model.mixture import RoutedLinear
from qplan.rounding import IntTensor
from qplan.rounding.rounder import Rounder
from qplan.rounding.stored_cache import StoredCache
from qplan.sensitivity.joint import Variant
from qplan.settings import Progress
from qplan.tuning.schedule import Schedule
from qplan.tuning.straight import StraightActivations
from qplan.tuning.through import QuantizedModel
from qplan.tuning.trained import TrainedGrid, TrainedWeights, integers
from qplan.tuning.training import Training


@dataclass(frozen=True)
class ScaleFit:
    """A plan whose scales and zeros are trained."""

    rounder: Rounder
    """Today's integers and scales."""
    plan: Variant
    """Formats of all tensors, and the arithmetic that it will ship with."""
    tokens: Tensor
    """int64 ``[rows, seq_len]``; of the last, which are not trained on, nothing else was fitted to any."""
    cache: StoredCache
    """Keeps what is trained."""
    schedule: Schedule
    """Which rows are trained on, and when."""
    state: Path | None = None
    """File for what a killed run goes on from; None to begin anew."""

    @cached_property
    def formats(self) -> dict[str, QuantFormat]:
        """Of the tensors that are trained: of integers, and read by every token."""
        loaded = self.rounder.loaded
        return {
            spec.name: self.plan.formats[spec.name]
            for spec in loaded.card.tensors
            if spec.name in self.plan.formats
            and not self.plan.formats[spec.name].is_float
            and not isinstance(loaded.linear(spec.name), RoutedLinear)
        }

    @property
    def is_done(self) -> bool:
        """Whether there is nothing left to do."""
        return all(self.cache.is_whole(name, fmt) for name, fmt in self.formats.items())

    def run(self, *, progress: Progress | None = None) -> None:
        """Train, and keep what lost least.

        Args:
            progress: called after each step.
        """
        if self.is_done:
            return
        grids = {name: TrainedGrid(self._start(name, fmt)) for name, fmt in self.formats.items()}
        for done in self._training(grids).steps():
            if progress is not None:
                progress(done, self.schedule.steps)
        for name, grid in grids.items():
            self.cache.get(name, self.formats[name], grid.stored, slice(0))
        if self.state is not None:
            self.state.unlink(missing_ok=True)

    def _training(self, grids: Mapping[str, TrainedGrid]) -> Training:
        plan = replace(self.plan, activations=StraightActivations.of(self.plan.activations))
        weights = TrainedWeights(self.rounder.loaded, self.rounder, grids=grids)
        values = {f"{name} {part}": value for name, grid in grids.items() for part, value in grid.parameters.items()}
        model = QuantizedModel(self.rounder.loaded, plan, weights)
        return Training(model, self.tokens, self.schedule, values, self.state, self.cache.inputs)

    def _start(self, name: str, fmt: QuantFormat) -> IntTensor:
        return integers(name, self.rounder.store(name, fmt))
