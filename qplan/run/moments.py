"""Second moments of a model's inputs on disk, a file per matrix: read one at a time, with numpy."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray

from qplan.artifact import decoding, is_there, read_json, write_json
from qplan.errors import DamagedArtifactError
from qplan.run.damage import tell_damaged
from qplan.run.decode import decode_artifact
from qplan.run.folder import RunFolder
from qplan.run.safetensors_file import SafetensorsFile, write_safetensors

KIND, SCHEMA = "qplan-moments", 1

_REMEDY = "'qplan analyze' makes it again"

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
        """Open moments that were made from the same inputs; None if there are none, or the index was damaged (told).

        The matrices are not read: each is held against its hash by `read`, or before that by `are_whole`.

        Raises:
            StaleArtifactError: written by a newer qplan.
        """
        index = folder / INDEX_FILE
        if not is_there(index):
            return None
        try:
            found = _Index.read(index)
        except DamagedArtifactError as error:
            tell_damaged(error)
            return None
        return cls(folder, found.key_of, found.tokens) if found.inputs == inputs else None

    def are_whole(self, tensors: Iterable[str]) -> bool:
        """Whether the matrices of some tensors are there and what was written; if not, that is told.

        Each is read once per process: gigabytes for a large model, so ask for those that will be needed.
        """
        try:
            for key in sorted({self.key_of[tensor] for tensor in tensors if tensor in self.key_of}):
                self._matrix(key)
        except DamagedArtifactError as error:
            tell_damaged(error)
            return False
        return True

    def read(self, tensor: str) -> Matrix:
        """A tensor's matrix; a copy that may be changed.

        Raises:
            DamagedArtifactError: the file was damaged.
        """
        if tensor not in self.key_of:
            msg = f"{self.folder / INDEX_FILE} has no matrix for {tensor}; remove {self.folder} to have it made again"
            raise DamagedArtifactError(msg)
        matrix: Matrix = self._matrix(self.key_of[tensor]).read(_ARRAY)
        return matrix

    def _matrix(self, key: str) -> SafetensorsFile:
        """The file of a matrix.

        Raises:
            DamagedArtifactError: it is missing, or not what was written.
        """
        file = SafetensorsFile(_file(self.folder, key))
        if not is_there(file.path):
            msg = f"{file.path} is missing; remove {self.folder} to have it made again"
            raise DamagedArtifactError(msg)
        file.check()
        return file

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
        found = _Index.read(index)
        if found.inputs.get("model") == model_sha256:
            yield StoredMoments(index.parent, found.key_of, found.tokens)


@dataclass(frozen=True)
class _Index:
    """What the index holds."""

    inputs: dict[str, str]
    key_of: dict[str, str]
    tokens: dict[str, int]

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read an index.

        Raises:
            InputError: the file is something else.
            DamagedArtifactError: it is not what was written.
            StaleArtifactError: written by a newer qplan.
        """
        stored = read_json(path, KIND, SCHEMA, remedy=_REMEDY)
        with decoding(path, _REMEDY):
            body = {key: stored[key] for key in ("inputs", "key_of", "tokens")}
        return decode_artifact(cls, body, path, _REMEDY)


def _file(folder: Path, key: str) -> Path:
    return folder / f"{key}.safetensors"
