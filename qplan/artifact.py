"""Writes files and folders whole or not at all; gives artifacts a header and checks it when they are read."""

from __future__ import annotations

import codecs
import errno
import hashlib
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, BinaryIO, cast

from qplan.errors import DamagedArtifactError, InputError, QplanError, StaleArtifactError, StorageError, ToolError
from qplan.scratch import Scratch, lock, remove_leftovers, sibling_prefix

_TRACKED_PACKAGES = ("qplan", "MNN", "llmexport", "torch", "transformers", "numpy", "scipy")


SEAL = "content_sha256"
"""Key under which artifacts hold the hash of everything else in them. Those of earlier versions have none."""

HEADER_KEYS = frozenset({"kind", "schema", "inputs", "versions", SEAL})
"""What a JSON artifact holds besides its body."""

MAKE_AGAIN = "it is made again"
"""Remedy of a damaged file that qplan keeps only to save time."""

_MOST_BYTES = 1 << 30
"""More than any JSON artifact has."""

FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""What a system answers to a write for which there is no space."""

_REFUSED = frozenset(
    {errno.EACCES, errno.EPERM, errno.EROFS, errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP}
)

_NEXT_TO_NOTHING = 4096
"""Free bytes below which a failure on a disk is put down to it being full: converters and engines do not say."""


@contextmanager
def writing(path: Path, *, need: int | None = None, draft: Path | None = None) -> Iterator[None]:
    """Say what is the matter if the block cannot write ``path``.

    Args:
        path: what is being written.
        need: bytes that it takes; None if that is not known beforehand.
        draft: file or folder that the block fills, to say how far it came.

    Raises:
        StorageError: the disk, or a quota, is full.
        InputError: the path cannot be written at all.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, OSError) and error.errno in _REFUSED:
            msg = f"{path} cannot be written: {error.strerror}; give another path"
            raise InputError(msg) from error
        if not _is_of_full_disk(error, path):
            raise
        raise no_space(path, need or 1 + _bytes_of(draft), least=need is None) from error


def no_space(path: Path, need: int, *, least: bool = False) -> StorageError:
    """The error for a path that a disk has no space for.

    Args:
        path: what was to be written.
        need: bytes that it takes.
        least: whether it may take more.
    """
    msg = f"{path} cannot be written: no space left on the disk, {free_bytes(path):,} bytes free, "
    msg += f"{'at least ' if least else ''}{need:,} needed; free space there, or use another folder"
    return StorageError(msg)


def _is_of_full_disk(error: Exception, path: Path) -> bool:
    if isinstance(error, OSError) and error.errno in FULL:
        return True
    if isinstance(error, QplanError) and not isinstance(error, ToolError):
        return False
    # libraries that are not Python keep the text alone
    return any(os.strerror(number) in str(error) for number in FULL) or free_bytes(path) < _NEXT_TO_NOTHING


def free_bytes(path: Path) -> int:
    """Bytes that are free where a path is, or would be."""
    found = next((parent for parent in (path, *path.absolute().parents) if parent.exists()), None)
    return 0 if found is None else shutil.disk_usage(found).free


def _bytes_of(draft: Path | None) -> int:
    if draft is None:
        return 0
    files = (path for path in (draft, *draft.rglob("*")) if path.is_file())
    return sum(path.stat().st_size for path in files)


@contextmanager
def atomic_path(path: Path, *, need: int | None = None) -> Iterator[Path]:
    """Yield a temporary sibling of ``path`` that replaces it only if the block ends well.

    Args:
        path: the file to write.
        need: bytes that it takes, for the message if there is no space.

    Raises:
        StorageError: the disk is full.
        InputError: the path cannot be written.
    """
    with writing(path, need=need):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=sibling_prefix(path), suffix=path.suffix)
        lock(handle)
    temporary = Path(name)
    try:
        with writing(path, need=need, draft=temporary):
            yield temporary
            # mkstemp makes the file private; an artifact is as readable as any other new file
            umask = os.umask(0)
            os.umask(umask)
            temporary.chmod(0o666 & ~umask)
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
        os.close(handle)


@contextmanager
def new_folder(out: Path, *, replace: bool = False) -> Iterator[Path]:
    """Yield an empty draft next to ``out`` that becomes ``out`` only if the block ends well.

    Args:
        out: the folder to make.
        replace: replace an existing folder, at the last moment.

    Raises:
        InputError: ``out`` is a file, or a folder that is not empty and not to be replaced, or cannot be written.
        StorageError: the disk is full.
    """
    taken = out.exists() and (not out.is_dir() or any(out.iterdir()))
    if taken and not (replace and out.is_dir()):
        msg = f"{out} already exists; remove it, or choose another folder"
        raise InputError(msg)
    with writing(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(out.parent)
        scratch = Scratch(beside=out)
    with scratch as temporary:
        draft = temporary / "draft"
        with writing(out, draft=draft):
            draft.mkdir()
            yield draft
            if out.exists():
                out.rename(temporary / "replaced")
            draft.rename(out)


def remove_folder(folder: Path) -> None:
    """Remove a folder all at once, if it is there: a kill leaves it whole, or nothing under its name."""
    if not folder.is_dir():
        return
    try:
        with Scratch(beside=folder) as temporary:
            folder.rename(temporary / folder.name)
    except OSError:  # no room for another name
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def temporary_folder(purpose: str) -> Iterator[Path]:
    """Yield a temporary folder; a block that fails because there is no space for it, in a child too, says so.

    Args:
        purpose: a word of small letters for its name.

    Raises:
        StorageError: the disk is full.
    """
    with Scratch(purpose) as folder, needing_room(folder):
        yield folder


@contextmanager
def needing_room(folder: Path) -> Iterator[None]:
    """Put a failure of the block down to the disk of a temporary folder if that is full.

    Raises:
        StorageError: it is.
    """
    try:
        yield
    except Exception as error:
        told_already = isinstance(error, QplanError) and not isinstance(error, ToolError)
        if told_already or (free := free_bytes(folder)) >= _NEXT_TO_NOTHING:
            raise
        msg = f"{folder.parent} is full: {free:,} bytes free for temporary files; free space there, or set TMPDIR to "
        raise StorageError(msg + "another folder") from error


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file whole or not at all.

    Raises:
        StorageError: the disk is full.
        InputError: the path cannot be written.
    """
    with atomic_path(path, need=len(data)) as temporary:
        temporary.write_bytes(data)


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
        msg = f"{path} cannot be read: {error.strerror}; check the name and its permissions"
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
        content = cast("bytes | None", stream.read(most_bytes))
    if content is None:  # files of the kernel say that they are regular, and have nothing to give yet
        msg = f"{path} gives nothing to read: not a file on a disk"
        raise InputError(msg)
    return content


def is_there(path: Path) -> bool:
    """Whether an artifact is there.

    Raises:
        InputError: something else is: a folder, a link to nothing, a FIFO, a device.
    """
    if path.is_file():
        return True
    if os.path.lexists(path):
        other = "no regular file" if path.exists() else "a link to nothing"
        kind = "a folder" if path.is_dir() else other
        msg = f"{path} is {kind}, where a file of qplan belongs; move it away"
        raise InputError(msg)
    return False


def parse_json(data: bytes) -> Any:  # noqa: ANN401 - any JSON value
    """A JSON value from bytes that nobody vouches for.

    Raises:
        InputError: not JSON in UTF-8, a byte order mark before it, nested too deeply, or a number with more digits than
            Python reads.
    """
    if data.startswith(codecs.BOM_UTF8):
        msg = "it begins with a byte order mark, which JSON has none of; save it as UTF-8 without one"
        raise InputError(msg)
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


def header(kind: str, schema: int, inputs: Mapping[str, str]) -> dict[str, Any]:
    """Header of an artifact: its kind and schema, sha256 of its inputs, versions of the packages that made it."""
    return {"kind": kind, "schema": schema, "inputs": dict(inputs), "versions": versions()}


def write_json(
    path: Path, kind: str, schema: int, inputs: Mapping[str, str], body: Mapping[str, Any], *, sealed: bool = True
) -> None:
    """Write an artifact atomically: the header's keys, then the body's.

    Floats that are not finite are refused: JSON has none, and a result must not hold one.

    Args:
        path: the file.
        kind: its kind.
        schema: version of its body.
        inputs: hashes of what it was made from.
        body: the rest.
        sealed: whether it holds a hash of its content; not where people may edit it.

    Raises:
        ValueError: a NaN or an infinity in the body.
        StorageError: the disk is full.
    """
    head = header(kind, schema, inputs)
    if sealed:
        # hashed as it reads back: with texts for keys, and lists for tuples
        head[SEAL] = sha256_json(json.loads(json.dumps(head | dict(body), allow_nan=False)))
    write_text(path, json.dumps(head | dict(body), indent=1, ensure_ascii=False, allow_nan=False) + "\n")


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
    if type(found) is not int or found > schema:
        msg = f"{path} has schema {found}, this qplan reads up to {schema}; update qplan or make the file again"
        raise StaleArtifactError(msg)


@contextmanager
def decoding(path: Path, remedy: str) -> Iterator[None]:
    """Tell where a value came from that the block cannot make sense of.

    Args:
        path: the file that holds it.
        remedy: how to make the file again.

    Raises:
        DamagedArtifactError: the block met a missing key, or a value of another type or out of range.
    """
    try:
        yield
    except DamagedArtifactError:
        raise
    except InputError as error:
        msg = f"{error}; {remedy}" if str(path) in str(error) else f"{path}: {error}; {remedy}"
        raise DamagedArtifactError(msg) from error
    except KeyError as error:
        msg = f"{path} lacks {error}; {remedy}"
        raise DamagedArtifactError(msg) from error
    except (AttributeError, IndexError, OverflowError, RecursionError, TypeError, ValueError) as error:
        msg = f"{path} does not hold what it should: {error}; {remedy}"
        raise DamagedArtifactError(msg) from error


def damaged(path: Path, remedy: str) -> DamagedArtifactError:
    """The error of a file whose content does not match its hash."""
    return DamagedArtifactError(f"{path} does not match its sha256: it was changed or damaged; {remedy}")


def read_json(path: Path, kind: str, schema: int, *, remedy: str = "restore it or make it again") -> dict[str, Any]:
    """Read an artifact; check its header and, if it has one, the hash of its content.

    Args:
        path: the file.
        kind: what it must be.
        schema: newest version that can be read.
        remedy: how to make it again, for messages.

    Raises:
        InputError: no such file, or another kind of file.
        DamagedArtifactError: not JSON (with line and column), or not what was written.
        StaleArtifactError: written by a newer qplan.
    """
    if not os.path.lexists(path):
        msg = f"{path} does not exist; {remedy}"
        raise InputError(msg)
    data = read_bounded(path, _MOST_BYTES)
    try:
        document = parse_json(data)
    except InputError as error:
        msg = f"{path} is not valid JSON: {error}; {remedy}"
        raise DamagedArtifactError(msg) from None
    if not isinstance(document, dict):
        msg = f"{path} holds a JSON {type(document).__name__}, expected an object; {remedy}"
        raise DamagedArtifactError(msg)
    if SEAL in document:
        rest = {key: value for key, value in document.items() if key != SEAL}
        if document[SEAL] != sha256_json(rest):
            raise damaged(path, remedy)
    check_header(document, path, kind, schema)
    for key in ("inputs", "versions"):
        texts = document.get(key, {})
        if not isinstance(texts, dict) or not all(isinstance(text, str) for text in texts.values()):
            msg = f"{path}: {key} must be an object of texts; {remedy}"
            raise DamagedArtifactError(msg)
    return document


def body_of(document: Mapping[str, Any]) -> dict[str, Any]:
    """An artifact without its header."""
    return {key: value for key, value in document.items() if key not in HEADER_KEYS}
