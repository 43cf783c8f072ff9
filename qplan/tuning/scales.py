"""Trains the scales and zeros of a plan end to end: all at once, on the loss of the whole model.

Integers stay. What is minimized is the KL divergence from the float model on calibration tokens, with the engine's int8
activations in the way under memory low: rounding lets gradients straight through (`qplan.tuning.straight`). What
trains are floats, but the model always computes with their values in the width that MNN stores. Some rows are not
trained on: the scales that lose least on them are kept, and training ends once they lose more.

Adam's state is on disk: a run that was killed goes on where it was.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
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
from qplan.tuning.through import Batch, QuantizedModel
from qplan.tuning.trained import TrainedGrid, TrainedWeights
from qplan.tuning.training_state import TrainingState

_BETAS = (0.9, 0.95)


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
        return all(self.cache.holds(name, fmt) for name, fmt in self.formats.items())

    def run(self, *, progress: Progress | None = None) -> None:
        """Train, and keep what lost least.

        Args:
            progress: called after each step.
        """
        if self.is_done:
            return
        grids = {name: TrainedGrid(self._start(name, fmt)) for name, fmt in self.formats.items()}
        training = _Training(self, grids)
        for done in training.steps():
            if progress is not None:
                progress(done, self.schedule.steps)
        for name, grid in grids.items():
            self.cache.get(name, self.formats[name], grid.stored, slice(0))
        if self.state is not None:
            self.state.unlink(missing_ok=True)

    def _start(self, name: str, fmt: QuantFormat) -> IntTensor:
        stored = self.rounder.store(name, fmt)
        if not isinstance(stored, IntTensor):
            msg = f"{name} was to be stored in {fmt} and is not integers"
            raise TypeError(msg)
        return stored


class _Training:
    """The steps of one training."""

    def __init__(self, fit: ScaleFit, grids: Mapping[str, TrainedGrid]) -> None:
        self._fit, self._schedule = fit, fit.schedule
        plan = replace(fit.plan, activations=StraightActivations.of(fit.plan.activations))
        loaded = fit.rounder.loaded
        self._model = QuantizedModel(loaded, plan, TrainedWeights(loaded, fit.rounder, grids=grids))
        self._values = {
            f"{name} {part}": value for name, grid in grids.items() for part, value in grid.parameters.items()
        }
        self._adam = torch.optim.Adam(self._values.values(), lr=1.0, betas=_BETAS, eps=1e-12)
        self._exact: dict[int, object] = {}
        self._state = TrainingState(fit.state, self._values, self._adam, fit.cache.inputs)

    def steps(self) -> Iterator[int]:
        """Train; gives the number of steps that are done after each. In the end the values are the best ones."""
        schedule, state = self._schedule, self._state
        if not state.read():
            state.judge(0, self._held_out())
        for step in range(state.done, schedule.steps):
            if state.is_past:
                break
            for group in self._adam.param_groups:
                group["lr"] = schedule.rate(step)
            self._adam.zero_grad()
            loss = self._model.add_gradients(self._batch(schedule.batch(step)))
            if not math.isfinite(loss):  # the best so far remains
                break
            self._adam.step()
            if (step + 1) in schedule.stops:
                state.judge(step + 1, self._held_out())
            yield step + 1
        state.take_best()
        yield schedule.steps

    def _held_out(self) -> float:
        """Mean KL on the rows that are not trained on, in nats."""
        parts = np.array_split(self._schedule.held_out, max(1, len(self._schedule.held_out) // 4))
        stats = [self._model.stats(self._batch(part)) for part in parts]
        return sum(one.kl_nats * one.tokens for one in stats) / sum(one.tokens for one in stats)

    def _batch(self, rows: np.ndarray) -> Batch:
        for row in rows:
            if int(row) not in self._exact:
                self._exact[int(row)] = self._model.exact(self._fit.tokens[row : row + 1])[0]
        return Batch(self._fit.tokens[torch.from_numpy(rows)], [self._exact[int(row)] for row in rows])
