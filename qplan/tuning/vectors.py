"""Norms and biases that were trained, in a file beside the tensors that they ship with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from qplan.artifact import is_there
from qplan.errors import DamagedArtifactError, InputError
from qplan.rounding.stored_cache import StoredCache
from qplan.run.damage import tell_damaged
from qplan.run.safetensors_file import SafetensorsFile, write_safetensors

_NAME = "norms-and-biases.safetensors"


@dataclass(frozen=True)
class KeptVectors:
    """The file."""

    path: Path
    inputs: Mapping[str, str]
    """What they depend on; a file of other inputs counts as absent."""

    @classmethod
    def of(cls, cache: StoredCache) -> KeptVectors:
        """The file of a folder of tensors."""
        return cls(cache.folder / _NAME, cache.inputs)

    @property
    def are_there(self) -> bool:
        """Whether the file is whole; damage is told."""
        try:
            return self._open() is not None
        except InputError as error:
            tell_damaged(error)
            return False

    def write(self, vectors: Mapping[str, Tensor]) -> None:
        """Keep vectors by parameter name."""
        write_safetensors(self.path, {name: value.cpu().numpy() for name, value in vectors.items()}, self.inputs)

    def read(self) -> dict[str, Tensor]:
        """Every vector, float32 ``[channels]``, by parameter name.

        Raises:
            DamagedArtifactError: the file was damaged or removed.
        """
        file = self._open()
        if file is None:
            msg = f"{self.path} is not there any more; 'qplan emit' fits it again"
            raise DamagedArtifactError(msg)
        return {name: torch.from_numpy(file.read(name)) for name in file.shapes}

    def _open(self) -> SafetensorsFile | None:
        if not is_there(self.path):
            return None
        file = SafetensorsFile(self.path)
        if file.metadata != dict(self.inputs):
            return None
        file.check()
        return file
