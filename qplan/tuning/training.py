"""Trains whatever a model computes with, end to end: Adam on the KL divergence of the whole model.

Some rows are not trained on: the values that lose least on them are kept, and training ends once they lose more. Adam's
state is on disk: a run that was killed goes on where it was.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from qplan.tuning.schedule import Schedule
from qplan.tuning.through import Batch, LossyModel
from qplan.tuning.training_state import TrainingState

_BETAS = (0.9, 0.95)


@dataclass
class Training:
    """The steps of one training."""

    model: LossyModel
    tokens: Tensor
    """int64 ``[rows, seq_len]``; of the last, which are not trained on, nothing else was fitted to any."""
    schedule: Schedule
    """Which rows are trained on, and when."""
    values: Mapping[str, nn.Parameter]
    """What is trained, by name."""
    path: Path | None
    """File for what a killed run goes on from; None to begin anew."""
    inputs: Mapping[str, str]
    """What it depends on."""
    _exact: dict[int, Any] = field(default_factory=dict)

    def steps(self) -> Iterator[int]:
        """Train; gives the number of steps that are done after each. In the end the values are the best ones."""
        schedule, state = self.schedule, self.state
        if not state.read():
            state.judge(0, self.held_out_loss())
        for step in range(state.done, schedule.steps):
            if state.is_past:
                break
            for group in state.adam.param_groups:
                group["lr"] = schedule.rate(step)
            state.adam.zero_grad()
            loss = self.model.add_gradients(self._batch(schedule.batch(step)))
            if not math.isfinite(loss):  # the best so far remains
                break
            state.adam.step()
            if (step + 1) in schedule.stops:
                state.judge(step + 1, self.held_out_loss())
            yield step + 1
        state.take_best()
        yield schedule.steps

    @cached_property
    def state(self) -> TrainingState:
        """Where it is."""
        adam = torch.optim.Adam(self.values.values(), lr=1.0, betas=_BETAS, eps=1e-12)
        return TrainingState(self.path, self.values, adam, self.inputs)

    def held_out_loss(self) -> float:
        """Mean KL on the rows that are not trained on, in nats."""
        parts = np.array_split(self.schedule.held_out, max(1, len(self.schedule.held_out) // 4))
        stats = [self.model.stats(self._batch(part)) for part in parts]
        return sum(one.kl_nats * one.tokens for one in stats) / sum(one.tokens for one in stats)

    def _batch(self, rows: np.ndarray) -> Batch:
        for row in rows:
            if int(row) not in self._exact:
                self._exact[int(row)] = self.model.exact(self.tokens[row : row + 1])[0]
        return Batch(self.tokens[torch.from_numpy(rows)], [self._exact[int(row)] for row in rows])
