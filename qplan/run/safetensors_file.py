"""Files of named arrays, read and written with numpy: a run's rounded tensors and moments, and a model's weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qplan.artifact import atomic_path
from qplan.errors import InputError

Array = NDArray[Any]

ALL = slice(None)

_DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "U8": "|u1"}
"""numpy's type by the file's; bfloat16, which numpy lacks, is read as 16 bits and widened."""


@dataclass(frozen=True)
class SafetensorsFile:
    """A file whose arrays are read one by one, whole or some rows; nothing is read before it is asked for."""

    path: Path

    @cached_property
    def _layout(self) -> tuple[dict[str, Any], int]:
        """The file's header, and where the arrays begin, in bytes."""
        with self.path.open("rb") as stream:
            size = int.from_bytes(stream.read(8), "little")
            try:
                header: dict[str, Any] = json.loads(stream.read(size))
            except ValueError:
                msg = f"{self.path} is not a whole safetensors file; restore it, or remove it to have it made again"
                raise InputError(msg) from None
        return header, 8 + size

    @property
    def metadata(self) -> dict[str, str]:
        """What the writer said about the arrays; empty if nothing."""
        found: dict[str, str] = self._layout[0].get("__metadata__", {})
        return found

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape by name of the array."""
        return {name: tuple(entry["shape"]) for name, entry in self._layout[0].items() if name != "__metadata__"}

    def read(self, name: str, rows: slice = ALL) -> Array:
        """An array, or some of its rows: only these are read.

        bfloat16 comes back as float32, everything else as it is stored. The result is a copy that may be changed.

        Args:
            name: the array's name.
            rows: slice of its first dimension, in steps of 1.

        Raises:
            InputError: no such array, one of a type that qplan does not write, or a file that was cut off.
        """
        header, start = self._layout
        entry = header.get(name)
        if entry is None or entry["dtype"] not in _DTYPES:
            what = f"no array {name!r}" if entry is None else f"{name} as {entry['dtype']}, which qplan does not read"
            msg = f"{self.path} holds {what}; restore the file, or remove it to have it made again"
            raise InputError(msg)
        shape, dtype = tuple(entry["shape"]), np.dtype(_DTYPES[entry["dtype"]])
        first, last, _ = rows.indices(shape[0]) if shape else (0, 1, 1)
        height, width = max(0, last - first), int(np.prod(shape[1:], dtype=np.int64))
        at = start + entry["data_offsets"][0] + first * width * dtype.itemsize
        found = np.fromfile(self.path, dtype, count=height * width, offset=at)
        if len(found) < height * width:
            msg = f"{self.path} was cut off in {name}; restore it, or remove it to have it made again"
            raise InputError(msg)
        if entry["dtype"] == "BF16":
            found = (found.astype(np.uint32) << 16).view(np.float32)
        return found.reshape((height, *shape[1:]) if shape else ())


def write_safetensors(path: Path, arrays: Mapping[str, Array], metadata: Mapping[str, str] | None = None) -> None:
    """Write arrays whole or not at all.

    Args:
        path: the file; its folder is made if need be.
        arrays: float64, float32, float16 or uint8, by name.
        metadata: texts by name that describe them.
    """
    from safetensors.numpy import save_file  # noqa: PLC0415 - readers do not need it

    with atomic_path(path) as temporary:
        contiguous = {name: np.asarray(array, order="C") for name, array in arrays.items()}
        save_file(contiguous, temporary, None if metadata is None else dict(metadata))
