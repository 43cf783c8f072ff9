"""Rounded tensors on disk, a file per tensor and format, read with numpy: some rows, or all of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from qplan.artifact import MAKE_AGAIN, damaged, is_there, sha256_json
from qplan.errors import InputError
from qplan.formats import QuantFormat
from qplan.run.damage import tell_damaged
from qplan.run.folder import RunFolder
from qplan.run.safetensors_file import ALL, Array, SafetensorsFile, write_safetensors


@dataclass(frozen=True, eq=False)
class RoundedArrays:
    """Integers of a matrix ``[out_features, in_features]`` and the grid that they lie on."""

    codes: NDArray[np.uint8]
    """``[out, in]``: the signed integer plus ``2^(bits-1)``."""
    scale: NDArray[np.float32]
    """``[out, blocks]``."""
    zero: NDArray[np.float32] | None
    """``[out, blocks]``, the value of signed integer 0; None if symmetric."""


@dataclass(frozen=True)
class RoundedTensors:
    """A folder of tensors that were rounded from the same inputs."""

    folder: Path
    inputs: Mapping[str, str]
    """What the tensors depend on; files of other inputs count as absent."""

    @classmethod
    def of(cls, run: RunFolder, inputs: Mapping[str, str]) -> RoundedTensors:
        """The tensors that a run keeps for some inputs."""
        return cls(run.rounding / f"{_FOLDER}{sha256_json(dict(inputs))[:12]}", inputs)

    def path(self, tensor: str, fmt: QuantFormat) -> Path:
        """The file of a tensor in a format."""
        return self.folder / _name(tensor, fmt)

    def read(self, tensor: str, fmt: QuantFormat, rows: slice = ALL) -> RoundedArrays | None:
        """Some output features of a tensor; None if it is not kept, was made from other inputs, or was damaged.

        Damage is told.
        """
        found = self._open(tensor, fmt)
        return None if found is None else _intact(found, fmt, rows)

    def holds(self, tensor: str, fmt: QuantFormat) -> bool:
        """Whether it is kept; `read` finds it unless its integers were damaged, which only reading all of it shows."""
        return self._open(tensor, fmt) is not None

    def write(self, tensor: str, fmt: QuantFormat, arrays: RoundedArrays) -> None:
        """Keep a tensor; its file is written atomically."""
        parts: dict[str, Array] = {"codes": arrays.codes, "scale": arrays.scale}
        if arrays.zero is not None:
            parts["zero"] = arrays.zero
        write_safetensors(self.path(tensor, fmt), parts, self.inputs)

    def _open(self, tensor: str, fmt: QuantFormat) -> SafetensorsFile | None:
        path = self.path(tensor, fmt)
        if not is_there(path):
            return None
        file = SafetensorsFile(path)
        try:
            return file if file.metadata == dict(self.inputs) else None
        except InputError as error:
            tell_damaged(error)
            return None


def fitted_tensors(run: RunFolder, inputs: Mapping[str, str]) -> Path:
    """Where a run keeps the tensors that were fitted to a plan as a whole."""
    return run.rounding / f"plan-{sha256_json(dict(inputs))[:12]}"


def find_rounded(
    run: RunFolder, model_sha256: str, rounding: str, tensor: str, fmt: QuantFormat
) -> RoundedArrays | None:
    """A tensor of a model as a run rounded it, whatever it was fitted to; None if the run did not keep it whole.

    Damage is told.
    """
    for path in sorted(run.rounding.glob(f"{_FOLDER}*/{_name(tensor, fmt)}")):
        file = SafetensorsFile(path)
        try:
            found = (file.metadata.get("model"), file.metadata.get("rounding"))
        except InputError as error:
            tell_damaged(error)
            continue
        if found == (model_sha256, rounding) and (arrays := _intact(file, fmt, ALL)) is not None:
            return arrays
    return None


_FOLDER = "tensors-"


def _name(tensor: str, fmt: QuantFormat) -> str:
    return f"{tensor}.{fmt.name}.safetensors"


def _intact(file: SafetensorsFile, fmt: QuantFormat, rows: slice) -> RoundedArrays | None:
    """Some rows of a file; None, which is told, if anything in it was damaged."""
    try:
        file.check()
        zero = None if fmt.symmetric else file.read("zero", rows)
        codes, scale = file.read("codes", rows), file.read("scale", rows)
        shapes = [scale.shape if zero is None else zero.shape, scale.shape]
        if codes.dtype != np.uint8 or codes.ndim != 2 or any(len(s) != 2 or s[0] != len(codes) for s in shapes):  # noqa: PLR2004
            raise damaged(file.path, MAKE_AGAIN)
        return RoundedArrays(codes, scale, zero)
    except (InputError, OSError) as error:
        tell_damaged(error)
        return None
