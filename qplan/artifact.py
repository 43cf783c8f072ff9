"""Writes files and folders whole or not at all; gives artifacts a header and checks it when they are read."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, BinaryIO

from qplan.errors import InputError, StaleArtifactError
from qplan.scratch import Scratch, lock, remove_leftovers, sibling_prefix

_TRACKED_PACKAGES = ("qplan", "MNN", "llmexport", "torch", "transformers", "numpy", "scipy")


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary sibling of ``path`` that replaces it only if the block ends well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=sibling_prefix(path), suffix=path.suffix)
    lock(handle)
    try:
        yield Path(temporary)
        # mkstemp makes the file private; an artifact is as readable as any other new file
        umask = os.umask(0)
        os.umask(umask)
        Path(temporary).chmod(0o666 & ~umask)
        Path(temporary).replace(path)
    finally:
        Path(temporary).unlink(missing_ok=True)
        os.close(handle)


@contextmanager
def new_folder(out: Path, *, replace: bool = False) -> Iterator[Path]:
    """Yield an empty draft next to ``out`` that becomes ``out`` only if the block ends well.

    Args:
        out: the folder to make.
        replace: replace an existing folder, at the last moment.

    Raises:
        InputError: ``out`` is a file, or a folder that is not empty and not to be replaced.
    """
    taken = out.exists() and (not out.is_dir() or any(out.iterdir()))
    if taken and not (replace and out.is_dir()):
        msg = f"{out} already exists; remove it, or choose another folder"
        raise InputError(msg)
    out.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(out.parent)
    with Scratch(beside=out) as temporary:
        draft = temporary / "draft"
        draft.mkdir()
        yield draft
        if out.exists():
            out.rename(temporary / "replaced")
        draft.rename(out)


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextmanager
def open_regular(path: Path) -> Iterator[tuple[BinaryIO, int]]:
    """Open a file from a folder that nobody vouches for: a regular one, and nothing that blocks.

    Args:
        path: the file; a link to one is followed.

    Yields:
        The open file, and how many bytes it has.

    Raises:
        InputError: no such file, not a regular file, or unreadable.
    """
    try:
        # a FIFO without a writer would block the open, a device the read
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as stream:  # noqa: PTH123
            status = os.fstat(stream.fileno())
            if not stat.S_ISREG(status.st_mode):
                msg = f"{path} is no regular file"
                raise InputError(msg)
            yield stream, status.st_size
    except FileNotFoundError:
        msg = f"{path} does not exist"
        raise InputError(msg) from None
    except OSError as error:
        msg = f"{path} cannot be read: {error.strerror}"
        raise InputError(msg) from None


def read_bounded(path: Path, most_bytes: int) -> bytes:
    """Read a file from a folder that nobody vouches for: a regular one of bounded size, and nothing that blocks.

    Args:
        path: the file; a link to one is followed.
        most_bytes: what a sound file of its kind does not exceed.

    Raises:
        InputError: no such file, not a regular file, too large, or unreadable.
    """
    with open_regular(path) as (stream, size):
        if size > most_bytes:
            msg = f"{path} has {size:,} bytes, more than the {most_bytes:,} that such a file can need"
            raise InputError(msg)
        return stream.read(most_bytes)


def parse_json(data: bytes) -> Any:  # noqa: ANN401 - any JSON value
    """A JSON value from bytes that nobody vouches for.

    Raises:
        InputError: not JSON in UTF-8, nested too deeply, or a number with more digits than Python reads.
    """
    try:
        return json.loads(data.decode("utf-8"))
    except RecursionError:
        msg = "it is nested too deeply"
        raise InputError(msg) from None
    except ValueError as error:  # also of UTF-8, and of numbers with thousands of digits
        msg = f"it is not JSON: {error}"
        raise InputError(msg) from None


def sha256_bytes(*parts: bytes) -> str:
    """SHA-256 over length-prefixed parts, as hex digits."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.hexdigest()


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's content, as hex digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sha256_json(value: Any) -> str:  # noqa: ANN401 - any JSON value
    """SHA-256 of a JSON value in canonical form."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def sha256_files(paths: Iterable[Path]) -> str:
    """SHA-256 over names and contents of files, in the order of their names."""
    parts: list[bytes] = []
    for path in sorted(paths, key=lambda p: p.name):
        parts += [path.name.encode(), bytes.fromhex(sha256_file(path))]
    return sha256_bytes(*parts)


def versions() -> dict[str, str]:
    """Versions of the packages that a result depends on; "absent" where one is not installed."""
    found: dict[str, str] = {}
    for package in _TRACKED_PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "absent"
    return found


_HEADER = ("kind", "schema", "inputs", "versions")
"""Keys of `header`."""


def header(kind: str, schema: int, inputs: Mapping[str, str]) -> dict[str, Any]:
    """Header of an artifact: its kind and schema, sha256 of its inputs, versions of the packages that made it."""
    return {"kind": kind, "schema": schema, "inputs": dict(inputs), "versions": versions()}


def write_json(path: Path, kind: str, schema: int, inputs: Mapping[str, str], body: Mapping[str, Any]) -> None:
    """Write an artifact atomically: the header's keys, then the body's.

    Floats that are not finite are refused: JSON has none, and a result must not hold one.

    Raises:
        ValueError: a NaN or an infinity in the body.
    """
    document = header(kind, schema, inputs) | dict(body)
    write_text(path, json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def check_header(document: Mapping[str, Any], path: Path, kind: str, schema: int) -> None:
    """Check kind and schema of a header that was read from ``path``.

    Raises:
        InputError: the file is something else.
        StaleArtifactError: the file was written by a newer qplan.
    """
    if document.get("kind") != kind:
        msg = f"{path} holds a {document.get('kind')!r}, expected {kind!r}; was another file put in its place?"
        raise InputError(msg)
    inputs = document.get("inputs", {})
    if not isinstance(inputs, dict) or not all(isinstance(item, str) for item in inputs.values()):
        msg = f"{path}, inputs: expected hashes by name; restore the file or make it again"
        raise InputError(msg)
    found = document.get("schema")
    if not isinstance(found, int) or found > schema:
        msg = f"{path} has schema {found}, this qplan reads up to {schema}; update qplan or make the file again"
        raise StaleArtifactError(msg)


def body_of(document: Mapping[str, Any]) -> dict[str, Any]:
    """An artifact's keys without its header's."""
    return {key: value for key, value in document.items() if key not in _HEADER}


def read_json(path: Path, kind: str, schema: int) -> dict[str, Any]:
    """Read an artifact and check its header.

    Raises:
        InputError: no such file, not JSON (with line and column), or another kind of file.
        StaleArtifactError: written by a newer qplan.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        msg = f"{path} does not exist"
        raise InputError(msg) from None
    except OSError as error:
        msg = f"{path} cannot be read: {error.strerror}; check the name and its permissions"
        raise InputError(msg) from None
    except RecursionError:
        msg = f"{path} is nested too deeply; restore it or make it again"
        raise InputError(msg) from None
    except ValueError as error:  # also of UTF-8, and of numbers with thousands of digits
        msg = f"{path} is not valid JSON: {error}; restore it or make it again"
        raise InputError(msg) from None
    if not isinstance(document, dict):
        msg = f"{path} holds a JSON {type(document).__name__}, expected an object"
        raise InputError(msg)
    check_header(document, path, kind, schema)
    return document
