"""What weight files say about themselves: names, types and shapes of their tensors, read without the weights.

A safetensors file begins with eight bytes that give the length of a JSON header, which says where each tensor's bytes
are. So a download that was cut, or a pointer where a file should be, shows in milliseconds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from qplan.artifact import open_regular, parse_json
from qplan.errors import InputError

_LFS = b"version https://git-lfs.github.com/spec/"
"""How a file begins that Git LFS puts in the place of a large one until that is fetched."""

_LENGTH_BYTES = 8
_MOST_HEADER_BYTES = 100_000_000
"""safetensors' own limit."""
_ENDS = 2
"""A tensor's bytes begin at one offset and end at another."""


@dataclass(frozen=True)
class TensorHeader:
    """One tensor of a weight file."""

    dtype: str
    """As safetensors calls it: ``F32``, ``BF16``, ``F8_E4M3``, ``I8``."""
    shape: tuple[int, ...]


def check_no_pointer(path: Path) -> None:
    """Refuse what Git LFS left in place of a file.

    Raises:
        InputError: a pointer, or a file that can't be read.
    """
    with open_regular(path) as (stream, _):
        refuse_pointer(path, stream.read(1024))


def refuse_pointer(path: Path, content: bytes) -> None:
    """The same, for what was read of a file.

    Raises:
        InputError: the content is a pointer.
    """
    if content.startswith(_LFS):
        sizes = [line[5:] for line in content[:1024].decode("utf-8", "replace").splitlines() if line[:5] == "size "]
        of = f" of {int(sizes[0]):,} bytes" if sizes and sizes[0].isdecimal() and len(sizes[0]) < 20 else ""
        msg = f"{path} is a Git LFS pointer, not the file{of} itself; run 'git lfs pull' in {path.parent}"
        raise InputError(msg)


def read_headers(paths: Iterable[Path]) -> dict[str, TensorHeader]:
    """Every tensor of some weight files, by name.

    Raises:
        InputError: see `read_header`; or two files hold tensors of one name.
    """
    found: dict[str, TensorHeader] = {}
    for path in paths:
        header = read_header(path)
        twice = sorted(found.keys() & header.keys())
        if twice:
            msg = f"{path} holds {twice[0]}, as another weight file beside it does; take out the one that is not meant"
            raise InputError(msg)
        found |= header
    return found


def read_header(path: Path) -> dict[str, TensorHeader]:
    """The tensors of one safetensors file, by name; its size must be what they take.

    Raises:
        InputError: an empty file, a Git LFS pointer, a file that was cut, or no safetensors file.
    """
    again = "download the model again"
    with open_regular(path) as (stream, size):
        start = stream.read(_LENGTH_BYTES)
        refuse_pointer(path, start + stream.read(1024))
        if len(start) < _LENGTH_BYTES:
            msg = f"{path} is {'empty' if not size else f'cut after {size} bytes, within its header'}; {again}"
            raise InputError(msg)
        length = int.from_bytes(start, "little")
        if length > _MOST_HEADER_BYTES:
            msg = f"{path} is no safetensors file: its header would have {length:,} bytes; {again}"
            raise InputError(msg)
        data_at = _LENGTH_BYTES + length
        if data_at > size:
            msg = f"{path} is cut after {size:,} bytes, within its header of {length:,}; {again}"
            raise InputError(msg)
        stream.seek(_LENGTH_BYTES)
        content = stream.read(length)
    try:
        header = parse_json(content)
        tensors, end = _tensors(header)
    except InputError as error:
        msg = f"{path} is no sound safetensors file: in its header, {error}; {again}"
        raise InputError(msg) from None
    whole = data_at + end
    if size < whole:
        msg = f"{path} is cut after {size:,} of {whole:,} bytes; {again}"
        raise InputError(msg)
    if size > whole:
        msg = f"{path} is damaged: it has {size:,} bytes, and its header accounts for {whole:,}; {again}"
        raise InputError(msg)
    return tensors


def _tensors(header: Any) -> tuple[dict[str, TensorHeader], int]:  # noqa: ANN401 - any JSON value
    """The tensors of a parsed header, and how many bytes they take."""
    if not isinstance(header, Mapping):
        msg = f"there is a JSON {type(header).__name__} instead of an object"
        raise InputError(msg)
    found: dict[str, TensorHeader] = {}
    end = 0
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        place = entry if isinstance(entry, Mapping) else {}
        dtype, shape, offsets = place.get("dtype"), place.get("shape"), place.get("data_offsets")
        if not isinstance(dtype, str) or not _are_sizes(shape) or not _are_sizes(offsets) or len(offsets) != _ENDS:
            msg = f"{name!r} has no type, shape and place"
            raise InputError(msg)
        found[name] = TensorHeader(dtype, tuple(shape))
        end = max(end, offsets[1])
    return found, end


def _are_sizes(value: Any) -> TypeGuard[list[int]]:  # noqa: ANN401 - any JSON value
    return isinstance(value, list) and all(type(one) is int and one >= 0 for one in value)
