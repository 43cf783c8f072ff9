"""Quantized tensors on disk: computed once, read by every batch, by a resumed run and by the build."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from qplan.formats import QuantFormat
from qplan.quantize import IntTensor, StoredTensor
from qplan.run.folder import RunFolder
from qplan.run.rounded import RoundedArrays, RoundedTensors
from qplan.run.safetensors_file import ALL


@dataclass(frozen=True)
class StoredCache:
    """A folder with one file per tensor and format."""

    folder: Path
    inputs: Mapping[str, str]
    """What the tensors depend on; files that were made from other inputs are computed again."""

    @classmethod
    def of(cls, run: RunFolder, inputs: Mapping[str, str]) -> StoredCache:
        """The tensors that a run keeps for some inputs."""
        return cls(RoundedTensors.of(run, inputs).folder, inputs)

    def get(self, name: str, fmt: QuantFormat, compute: Callable[[], StoredTensor], rows: slice = ALL) -> StoredTensor:
        """Read some rows of a tensor, or compute and keep all of it."""
        found = self._files.read(name, fmt, rows)
        if found is not None:
            zero = None if found.zero is None else torch.from_numpy(found.zero)
            return IntTensor(fmt, torch.from_numpy(found.codes), torch.from_numpy(found.scale), zero)
        stored = compute()
        if isinstance(stored, IntTensor):
            kept = None if stored.zero is None else _numpy(stored.zero)
            self._files.write(name, fmt, RoundedArrays(_numpy(stored.codes), _numpy(stored.scale), kept))
        return stored.rows(rows)

    def holds(self, name: str, fmt: QuantFormat) -> bool:
        """Whether `get` would only have to read."""
        return self._files.holds(name, fmt)

    @cached_property
    def _files(self) -> RoundedTensors:
        return RoundedTensors(self.folder, self.inputs)


def _numpy(part: Tensor) -> NDArray[Any]:
    return part.cpu().numpy()
