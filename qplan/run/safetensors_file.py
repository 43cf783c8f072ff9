"""Files of named arrays, read and written with numpy: a run's rounded tensors and moments, and a model's weights."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qplan.artifact import SEAL, atomic_path, damaged, parse_json
from qplan.errors import DamagedArtifactError, InputError
from qplan.scratch import Scratch

Array = NDArray[Any]

ALL = slice(None)

REMEDY = "restore it, or remove it to have it made again"

_MOST_HEADER_BYTES = 100_000_000
"""The format's own limit."""

_LENGTH_BYTES = 8
"""What says how long the header is."""

_CHUNK_BYTES = 1 << 20

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
            total = os.fstat(stream.fileno()).st_size
            size = int.from_bytes(stream.read(_LENGTH_BYTES), "little")
            data = stream.read(size) if size <= min(total, _MOST_HEADER_BYTES) else b""
        try:
            header = dict(parse_json(data))
            _check_layout(header)
        except (AttributeError, InputError, KeyError, TypeError, ValueError):
            msg = f"{self.path} is not a whole safetensors file; {REMEDY}"
            raise DamagedArtifactError(msg) from None
        return header, _LENGTH_BYTES + size

    @property
    def metadata(self) -> dict[str, str]:
        """What the writer said about the arrays, without their hash; empty if nothing."""
        return {key: text for key, text in self._layout[0].get("__metadata__", {}).items() if key != SEAL}

    def check(self) -> None:
        """Prove that the file holds what was written, by the hash that it holds; nothing to prove if it has none.

        All of it is read, once per process as long as nobody writes to it.

        Raises:
            DamagedArtifactError: it does not.
        """
        status = self.path.stat()
        if not _is_intact(self.path, status.st_size, status.st_mtime_ns, status.st_ino):
            raise damaged(self.path, REMEDY)

    @property
    def _is_intact(self) -> bool:
        header, start = self._layout
        wanted = header.get("__metadata__", {}).get(SEAL)
        if wanted is None:
            return True
        parts = {name: (entry["dtype"], entry["shape"]) for name, entry in header.items() if name != "__metadata__"}
        digest = _digest(self.metadata, parts)
        with self.path.open("rb") as stream:
            for name in sorted(parts):
                first, end = header[name]["data_offsets"]
                stream.seek(start + first)
                for at in range(first, end, _CHUNK_BYTES):
                    digest.update(stream.read(min(_CHUNK_BYTES, end - at)))
        return bool(digest.hexdigest() == wanted)

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
            DamagedArtifactError: no such array, one of a type that qplan does not write, or a file that was cut off.
        """
        header, start = self._layout
        entry = header.get(name)
        if entry is None or entry["dtype"] not in _DTYPES:
            what = f"no array {name!r}" if entry is None else f"{name} as {entry['dtype']}, which qplan does not read"
            msg = f"{self.path} holds {what}; restore the file, or remove it to have it made again"
            raise DamagedArtifactError(msg)
        shape, dtype = tuple(entry["shape"]), np.dtype(_DTYPES[entry["dtype"]])
        first, last, _ = rows.indices(shape[0]) if shape else (0, 1, 1)
        height, width = max(0, last - first), int(np.prod(shape[1:], dtype=np.int64))
        begin, end = entry["data_offsets"]
        if end - begin != int(np.prod(shape, dtype=object)) * dtype.itemsize:
            msg = f"{self.path}: {name} of shape {list(shape)} has {end - begin:,} bytes; {REMEDY}"
            raise DamagedArtifactError(msg)
        if start + end > self.path.stat().st_size:
            msg = f"{self.path} was cut off in {name}; {REMEDY}"
            raise DamagedArtifactError(msg)
        at = start + begin + first * width * dtype.itemsize
        found = np.fromfile(self.path, dtype, count=height * width, offset=at)
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

    contiguous = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    texts = dict(metadata or {})
    digest = _digest(texts, {name: (_CODES[array.dtype], list(array.shape)) for name, array in contiguous.items()})
    for name in sorted(contiguous):
        digest.update(contiguous[name].reshape(-1).view(np.uint8))
    need = sum(array.nbytes for array in contiguous.values())
    with atomic_path(path, need=need) as temporary, Scratch(beside=path) as folder:
        draft = folder / "draft"  # the library writes beside it under a name of its own, which a kill would leave
        save_file(contiguous, draft, texts | {SEAL: digest.hexdigest()})
        _sort_metadata(draft)
        draft.replace(temporary)


def _sort_metadata(path: Path) -> None:
    """Give metadata an order: the library's changes from run to run, and equal files are to be equal bytes."""
    with path.open("r+b") as stream:
        length = int.from_bytes(stream.read(_LENGTH_BYTES), "little")
        header = json.loads(stream.read(length))
        ordered = {"__metadata__": dict(sorted(header.pop("__metadata__").items()))} | header
        data = json.dumps(ordered, separators=(",", ":"), ensure_ascii=False).encode()
        if len(data) <= length:
            stream.seek(_LENGTH_BYTES)
            stream.write(data.ljust(length))


_CODES = {np.dtype(name): code for code, name in _DTYPES.items() if code != "BF16"}
"""The file's type by numpy's."""


def _digest(metadata: Mapping[str, str], arrays: Mapping[str, tuple[str, list[int]]]) -> Any:  # noqa: ANN401 - hashlib's
    """SHA-256 that has seen what describes the arrays; their bytes follow, by name."""
    described = {"metadata": dict(metadata), "arrays": {name: list(of) for name, of in arrays.items()}}
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode())


def _check_layout(header: Mapping[str, Any]) -> None:
    """Prove that a header describes arrays; what it raises otherwise is the caller's to name."""
    for name, entry in header.items():
        if name == "__metadata__":
            if not all(isinstance(text, str) for text in entry.values()):
                raise TypeError
            continue
        begin, end = entry["data_offsets"]
        counts = (begin, end, *entry["shape"])
        if not isinstance(entry["dtype"], str) or not all(type(n) is int and n >= 0 for n in counts):
            raise TypeError
        if begin > end:
            raise ValueError


@lru_cache(maxsize=1 << 16)
def _is_intact(path: Path, size: int, mtime_ns: int, inode: int) -> bool:  # noqa: ARG001 - what shows a change
    return SafetensorsFile(path)._is_intact  # noqa: SLF001 - its own module
