"""Weights and quantized tensors as a run stores them, read with numpy; torch is imported where no file holds them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qplan.errors import InputError
from qplan.formats import QuantFormat
from qplan.run.fold import analyzed_folder
from qplan.run.folder import RunFolder
from qplan.run.moments import kept_moments
from qplan.run.rounded import find_rounded
from qplan.run.safetensors_file import SafetensorsFile
from qplan.run.table import SensitivityTable
from qplan.tensors import TensorSpec

_RMS_TOKENS = 2048
"""Calibration tokens that the model is run on where a run keeps no moments."""

Weights = NDArray[np.float32]
"""``[out_features, in_features]``."""


@dataclass(frozen=True, eq=False)
class StoredGrid:
    """A tensor's integers and the grid that they lie on, block by block."""

    format: QuantFormat
    codes: NDArray[np.int16]
    """Signed integers ``[out_features, blocks, block]``: levels of the format."""
    scale: NDArray[np.float32]
    """``[out_features, blocks]``: distance between neighboring values of the grid, in the weights' units."""
    zero: NDArray[np.float32]
    """``[out_features, blocks]``: the value of integer 0."""

    @property
    def dequantized(self) -> Weights:
        """``[out_features, in_features]``: what the engine computes with."""
        blocks = self.codes * self.scale[..., None] + self.zero[..., None]
        return blocks.astype(np.float32).reshape(len(self.codes), -1)

    def steps(self, weight: Weights) -> NDArray[np.float32]:
        """Weights in steps of their block's grid ``[out_features, blocks, block]``: whole numbers lose nothing.

        Blocks without a scale, whose weights are all the same, are 0.
        """
        scale, zero = self.scale[..., None], self.zero[..., None]
        shifted = weight.reshape(self.codes.shape) - zero
        found: NDArray[np.float32] = np.divide(shifted, scale, out=np.zeros_like(shifted), where=scale > 0)
        return found


def read_weight(home: RunFolder, table: SensitivityTable, tensor: str) -> Weights:
    """A tensor's weights in float32, from the analyzed model's safetensors.

    Where no file holds the tensor under its own name (parts of fused matrices, models on the hub), the model is loaded,
    which imports torch.

    Raises:
        InputError: the model no longer exists.
    """
    spec = table.model.tensor(tensor)
    found = _from_files(analyzed_folder(home, table.model), spec)
    if found is not None:
        return found
    from qplan.explore.loaded import loaded_weight  # noqa: PLC0415 - torch

    return loaded_weight(home, table, tensor)


def read_grid(home: RunFolder, table: SensitivityTable, tensor: str, fmt: QuantFormat) -> StoredGrid:
    """A tensor's integers in a format: those that were measured, which ship unless a build fits them to its plan.

    Integers that the run did not keep (rounding to nearest) are computed again, which imports torch.

    Raises:
        InputError: a float format, which has no grid, or the model no longer exists.
    """
    if fmt.is_float:
        msg = f"{fmt} has no grid: its values are floats; choose an integer format of {tensor}"
        raise InputError(msg)
    spec, rounding = table.model.tensor(tensor), table.conditions.rounding
    kept = find_rounded(home, table.model.sha256, rounding, tensor, fmt)
    if kept is not None:
        return _grid(spec, fmt, kept.codes, kept.scale, kept.zero)
    from qplan.explore.loaded import rounded_grid  # noqa: PLC0415 - torch

    return _grid(spec, fmt, *rounded_grid(home, table, tensor, fmt))


def channel_rms(home: RunFolder, table: SensitivityTable, tensor: str) -> NDArray[np.float64]:
    """Root mean square of every input feature of a tensor on the fit text ``[in_features]``, in activation units.

    From the second moments that rounding was fitted to. Those of a head tied to the embedding also hold its lookups.
    Where the run keeps none, since it was rounded without data, the model is run on calibration tokens: imports torch.

    Raises:
        InputError: no token reached the tensor, or the model no longer exists.
    """
    for moments in kept_moments(home, table.model.sha256, "fit"):
        if tensor in moments.key_of:
            return np.sqrt(np.diagonal(moments.read(tensor)).astype(np.float64))
    from qplan.explore.loaded import inputs_of  # noqa: PLC0415 - torch

    squares = np.square(inputs_of(home, table, tensor, _RMS_TOKENS).astype(np.float64))
    found: NDArray[np.float64] = np.sqrt(squares.mean(0))
    return found


def _grid(
    spec: TensorSpec, fmt: QuantFormat, codes: NDArray[Any], scale: NDArray[Any], zero: NDArray[Any] | None
) -> StoredGrid:
    signed = np.array(fmt.levels, np.int16)[codes]
    blocks = signed.reshape(spec.out_features, scale.shape[1], -1)
    return StoredGrid(fmt, blocks, scale, np.zeros_like(scale) if zero is None else zero)


def _from_files(folder: Path, spec: TensorSpec) -> Weights | None:
    shape = (spec.out_features, spec.in_features)
    for path in sorted(folder.glob("*.safetensors")) if folder.is_dir() else ():
        file = SafetensorsFile(path)
        name = f"{spec.name}.weight"
        if name not in file.shapes and spec.tied:
            # the head is stored once, as the embedding
            name = next((key for key, found in file.shapes.items() if "embed" in key and found == shape), name)
        if file.shapes.get(name) == shape:
            weight: Weights = file.read(name).astype(np.float32)
            return weight
    return None
