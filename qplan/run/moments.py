"""Second moments of a model's inputs on disk, a file per matrix: read one at a time, with numpy."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray

from qplan.artifact import read_json, write_json
from qplan.run.folder import RunFolder
from qplan.run.safetensors_file import SafetensorsFile, write_safetensors

KIND, SCHEMA = "qplan-moments", 1

INDEX_FILE = "index.json"
"""File beside the matrices that says which tensors each belongs to. Written last: moments without it are not whole."""

_ARRAY = "moments"

Part = Literal["fit", "judge"]
"""Which windows of the calibration: those that rounding is fitted to, or those that it chooses by."""

Matrix = NDArray[np.float32]
"""``X'X / tokens``, ``[in_features, in_features]``."""


@dataclass(frozen=True)
class StoredMoments:
    """A folder of matrices, and which tensors they belong to."""

    folder: Path
    key_of: dict[str, str]
    """By tensor name, the tensor whose file holds its moments: tensors that read the same input share one."""
    tokens: dict[str, int]
    """How many tokens reached a tensor's input with anything but zeros, by tensor name."""

    @classmethod
    def open(cls, folder: Path, inputs: Mapping[str, str]) -> Self | None:
        """Open moments that were made from the same inputs; None if there are none.

        Raises:
            InputError: the index is something else.
            StaleArtifactError: written by a newer qplan.
        """
        index = folder / INDEX_FILE
        if not index.is_file():
            return None
        found = read_json(index, KIND, SCHEMA)
        return cls(folder, found["key_of"], found["tokens"]) if found["inputs"] == inputs else None

    def read(self, tensor: str) -> Matrix:
        """A tensor's matrix; a copy that may be changed.

        Raises:
            InputError: the file was damaged.
        """
        matrix: Matrix = SafetensorsFile(_file(self.folder, self.key_of[tensor])).read(_ARRAY)
        return matrix

    def write_index(self, inputs: Mapping[str, str]) -> None:
        """Write which tensors the matrices belong to, after all of these are written.

        Args:
            inputs: what they depend on.
        """
        body = {"key_of": self.key_of, "tokens": self.tokens}
        write_json(self.folder / INDEX_FILE, KIND, SCHEMA, inputs, body)


def write_matrix(folder: Path, key: str, matrix: Matrix) -> None:
    """Write one matrix atomically."""
    write_safetensors(_file(folder, key), {_ARRAY: matrix})


def moments_folder(run: RunFolder, part: Part, tokens_sha256: str) -> Path:
    """Where a run keeps the moments of some tokens."""
    return run.rounding / f"{part}-{tokens_sha256[:12]}"


def kept_moments(run: RunFolder, model_sha256: str, part: Part) -> Iterator[StoredMoments]:
    """The moments of a model that a run keeps, whichever tokens they are of.

    Raises:
        InputError: an index is something else.
        StaleArtifactError: written by a newer qplan.
    """
    for index in sorted(run.rounding.glob(f"{part}-*/{INDEX_FILE}")):
        found = read_json(index, KIND, SCHEMA)
        if found["inputs"]["model"] == model_sha256:
            yield StoredMoments(index.parent, found["key_of"], found["tokens"])


def _file(folder: Path, key: str) -> Path:
    return folder / f"{key}.safetensors"
