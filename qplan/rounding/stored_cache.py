"""Quantized tensors on disk: computed once, read by every batch, by a resumed run and by the build."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from qplan.errors import DamagedArtifactError
from qplan.formats import QuantFormat
from qplan.rounding import IntTensor, StoredTensor
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
        found = self.read(name, fmt, rows)
        if found is not None:
            return found
        stored = compute()
        if isinstance(stored, IntTensor):
            kept = None if stored.zero is None else _numpy(stored.zero)
            self._files.write(name, fmt, RoundedArrays(_numpy(stored.codes), _numpy(stored.scale), kept))
        return stored.rows(rows)

    def read(self, name: str, fmt: QuantFormat, rows: slice = ALL) -> IntTensor | None:
        """Some rows of a tensor; None if it is not kept."""
        found = self._files.read(name, fmt, rows)
        if found is None:
            return None
        zero = None if found.zero is None else torch.from_numpy(found.zero)
        return IntTensor(fmt, torch.from_numpy(found.codes), torch.from_numpy(found.scale), zero)

    def holds(self, name: str, fmt: QuantFormat) -> bool:
        """Whether `get` would only have to read."""
        return self._files.holds(name, fmt)

    def is_whole(self, name: str, fmt: QuantFormat) -> bool:
        """Whether `read` would find it: all of its file is checked, once."""
        return self.read(name, fmt, slice(0)) is not None

    @cached_property
    def _files(self) -> RoundedTensors:
        return RoundedTensors(self.folder, self.inputs)


@dataclass(frozen=True)
class FittedTensors:
    """Tensors of one plan that a folder holds, each in the plan's format."""

    cache: StoredCache
    formats: Mapping[str, QuantFormat]
    """By tensor name."""
    held: Mapping[str, IntTensor] = field(default_factory=dict)
    """Those that are in memory instead."""

    def have(self, name: str, fmt: QuantFormat) -> bool:
        """Whether a tensor in a format is one of them."""
        return self.formats.get(name) == fmt

    def read(self, name: str, rows: slice = ALL) -> IntTensor:
        """Some rows of a tensor.

        Raises:
            DamagedArtifactError: its file was damaged or removed.
        """
        if name in self.held:
            return self.held[name].rows(rows)
        found = self.cache.read(name, self.formats[name], rows)
        if found is None:
            msg = f"{self.cache.folder} has no whole {name} any more; 'qplan emit' fits it again"
            raise DamagedArtifactError(msg)
        return found


def _numpy(part: Tensor) -> NDArray[Any]:
    return part.cpu().numpy()
