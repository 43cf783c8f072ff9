"""Reads single tensors of a model's weight files, which stay mapped: what is not looked at takes no memory."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from qplan.errors import InputError
from qplan.model.headers import TensorHeader, read_header
from qplan.model.source import weight_files

_GATE_UP = re.compile(r"\.gate_up_proj\.weight$")
_PARTS = (".gate_proj.weight", ".up_proj.weight")
"""An expert's two matrices are one module in `qplan.model.mixture`, and two tensors in weight files."""

_ROWS = 1024
"""Rows of two matrices to compare at a time."""


@dataclass(frozen=True)
class Checkpoint:
    """The weight files of a folder."""

    folder: Path
    file_of: dict[str, Path]
    """By tensor name."""
    headers: dict[str, TensorHeader]
    """The same."""

    @classmethod
    def open(cls, folder: Path, files: Iterable[Path] | None = None) -> Checkpoint:
        """Read the headers of the weight files of a folder, or of those given.

        Raises:
            InputError: see `qplan.model.headers.read_header`.
        """
        file_of: dict[str, Path] = {}
        headers: dict[str, TensorHeader] = {}
        for path in weight_files(folder) if files is None else files:
            found = read_header(path)
            headers |= found
            file_of |= dict.fromkeys(found, path)
        return cls(folder, file_of, headers)

    def keys_of(self, name: str) -> tuple[str, ...]:
        """Names of the tensors in the files, one below the other, that make a parameter of a loaded model.

        Raises:
            InputError: the files do not hold it under a name that is known.
        """
        # files of a bare decoder lack the prefix that all its modules share
        for known in (name, name.partition(".")[2]):
            if known in self.file_of:
                return (known,)
            parts = tuple(_GATE_UP.sub(part, known) for part in _PARTS)
            if _GATE_UP.search(known) and all(part in self.file_of for part in parts):
                return parts
        msg = (
            f"{self.folder} holds no {name}, under that name, so its layers can't be read one at a time; give a "
            "--max-memory that the whole model fits in, or save the model again with save_pretrained"
        )
        raise InputError(msg)

    def has(self, name: str) -> bool:
        """Whether the files hold a parameter of a loaded model, see `keys_of`."""
        try:
            self.keys_of(name)
        except InputError:
            return False
        return True

    def shape(self, keys: Sequence[str]) -> tuple[int, ...]:
        """Shape of some tensors, one below the other."""
        first = self.headers[keys[0]].shape
        return (sum(self.headers[key].shape[0] for key in keys), *first[1:]) if first else first

    def equal(self, *names: str, types: Sequence[torch.dtype] = (torch.float32,)) -> bool:
        """Whether two tensors hold the same values in one of some types; read up to the first that differs."""
        (first,), (second,) = (self.keys_of(name) for name in names)
        if self.headers[first].shape != self.headers[second].shape:
            return False
        parts = zip(self.mapped(first).split(_ROWS), self.mapped(second).split(_ROWS), strict=True)
        return all(any(torch.equal(one.to(dtype), other.to(dtype)) for dtype in types) for one, other in parts)

    def mapped(self, key: str) -> Tensor:
        """A tensor as it is stored, mapped and not yet read; let go of it soon, since it keeps what was read of it."""
        with safe_open(self.file_of[key], "pt") as file:
            found: Tensor = file.get_tensor(key)
        return found

    def stacked(self, keys: Sequence[str]) -> Tensor:
        """Some tensors, one below the other; mapped if it is one, see `mapped`."""
        parts = [self.mapped(key) for key in keys]
        return parts[0] if len(parts) == 1 else torch.cat(parts)
