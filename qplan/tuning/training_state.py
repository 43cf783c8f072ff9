"""What a training goes on from: values, Adam's moments, and the best values so far."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from qplan.artifact import is_there
from qplan.run.safetensors_file import SafetensorsFile, write_safetensors

_PATIENCE = 3
"""Stops in a row at which held-out rows may lose more than they did at best."""

_TRIAL, _LEAST_GAIN = 2, 0.005
"""Stops after which held-out rows must lose so much less, in parts of what they lost: qwen2-8m loses 4 % less by then
at 3 bits, and in the end no less at 8 bits with int8 activations (``reports/rounding/tuned.md``)."""

_MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass
class TrainingState:
    """A training on its way, written to a file at every stop."""

    path: Path | None
    """None keeps it in memory alone."""
    values: Mapping[str, Tensor]
    """What is trained, by name."""
    adam: torch.optim.Adam
    inputs: Mapping[str, str]
    """What the training depends on; a file of another one counts as absent."""
    done: int = 0
    """Steps up to the last stop."""
    losses: list[float] = field(default_factory=list)
    """On held-out rows at every stop, in nats per token."""
    _best: dict[str, Tensor] = field(default_factory=dict)

    @property
    def is_past(self) -> bool:
        """Whether there is nothing to gain, or held-out rows lose more and more."""
        stops = len(self.losses) - 1
        if stops >= _TRIAL and min(self.losses[: _TRIAL + 1]) > (1 - _LEAST_GAIN) * self.losses[0]:
            return True
        return stops - int(np.argmin(self.losses)) >= _PATIENCE

    def judge(self, done: int, loss: float) -> None:
        """Note the loss on held-out rows after some steps, and keep everything."""
        self.done = done
        if not self.losses or loss < min(self.losses):
            self._best = {name: value.detach().clone() for name, value in self.values.items()}
        self.losses.append(loss)
        self._write()

    def take_best(self) -> None:
        """Give all values back what they were when held-out rows lost least."""
        with torch.no_grad():
            for name, value in self.values.items():
                value.copy_(self._best[name])

    def read(self) -> bool:
        """Go on from the file, if there is one of this training.

        Raises:
            DamagedArtifactError: it was damaged.
        """
        if self.path is None or not is_there(self.path):
            return False
        file = SafetensorsFile(self.path)
        if file.metadata != dict(self.inputs):
            return False
        file.check()
        self.losses = file.read("losses").tolist()
        self.done = int(file.read("done")[0])
        for name, value in self.values.items():
            self._best[name] = torch.from_numpy(file.read(f"{name} best")).to(value.device)
            with torch.no_grad():
                value.copy_(torch.from_numpy(file.read(name)))
            if self.done:
                moments = {key: torch.from_numpy(file.read(f"{name} {key}")).to(value.device) for key in _MOMENTS}
                self.adam.state[value] = {"step": torch.tensor(float(self.done)), **moments}
        return True

    def _write(self) -> None:
        if self.path is None:
            return
        arrays = {"losses": np.array(self.losses), "done": np.array([self.done], np.float64)}
        for name, value in self.values.items():
            parts = {name: value, f"{name} best": self._best[name]}
            parts |= {f"{name} {key}": self.adam.state[value][key] for key in _MOMENTS} if self.done else {}
            arrays |= {part: tensor.detach().cpu().numpy() for part, tensor in parts.items()}
        write_safetensors(self.path, arrays, self.inputs)
