"""Quantized tensors on disk: computed once, read by every batch, by a resumed run and by the build."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from qplan.artifact import atomic_path
from qplan.formats import QuantFormat
from qplan.quantize import IntTensor, StoredTensor

ALL = slice(None)


@dataclass(frozen=True)
class StoredCache:
    """A folder with one file per tensor and format."""

    folder: Path
    inputs: Mapping[str, str]
    """What the tensors depend on; files of other inputs are computed again."""

    def get(self, name: str, fmt: QuantFormat, compute: Callable[[], StoredTensor], rows: slice = ALL) -> StoredTensor:
        """Read some rows of a tensor, or compute and keep all of it."""
        path = self._path(name, fmt)
        if path.is_file() and (found := self._read(path, fmt, rows)) is not None:
            return found
        stored = compute()
        if isinstance(stored, IntTensor):
            parts = {"codes": stored.codes, "scale": stored.scale} | _optional(stored.zero)
            with atomic_path(path) as temporary:
                save_file({key: part.contiguous().cpu() for key, part in parts.items()}, temporary, dict(self.inputs))
        return stored.rows(rows)

    def holds(self, name: str, fmt: QuantFormat) -> bool:
        """Whether `get` would only have to read."""
        path = self._path(name, fmt)
        if not path.is_file():
            return False
        with safe_open(path, "pt") as parts:
            found: bool = parts.metadata() == dict(self.inputs)
        return found

    def _path(self, name: str, fmt: QuantFormat) -> Path:
        return self.folder / f"{name}.{fmt.name}.safetensors"

    def _read(self, path: Path, fmt: QuantFormat, rows: slice) -> IntTensor | None:
        with safe_open(path, "pt") as parts:
            if parts.metadata() != dict(self.inputs):
                return None
            zero = None if fmt.symmetric else parts.get_slice("zero")[rows]
            return IntTensor(fmt, parts.get_slice("codes")[rows], parts.get_slice("scale")[rows], zero)


def _optional(zero: Tensor | None) -> dict[str, Tensor]:
    return {} if zero is None else {"zero": zero}
