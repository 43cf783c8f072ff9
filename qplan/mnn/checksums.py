"""``checksums.json``: sizes and hashes of a built model's files, so that damage on the way to a device is found."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from qplan.artifact import (
    SEAL,
    check_header,
    damaged,
    parse_json,
    read_bounded,
    sha256_file,
    sha256_json,
    write_json,
)
from qplan.errors import InputError
from qplan.mnn.files import CHECKSUMS_FILE, CONFIG_FILE, LLM_CONFIG_FILE
from qplan.mnn.graph.tie import TIE_KEY

KIND, SCHEMA = "checksums", 1

_LEFT_OUT = frozenset({CHECKSUMS_FILE, CONFIG_FILE})
"""``config.json`` is for people to change: threads, sampling, prompts."""

_MOST_BYTES = 1 << 20
_MOST_NAME_BYTES = 255
"""What file systems take."""


@dataclass(frozen=True)
class Checksum:
    """What a file was when the model was built."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class Checksums:
    """What a model was when it was built."""

    files: dict[str, Checksum]
    """By file name."""
    settings: tuple[str, ...]
    """Keys of ``config.json``; people change their values. Models of earlier versions list none."""
    knows_tie: bool = False
    """Whether it says what ``tie_embeddings`` was; not in models of earlier versions."""
    tie: object = None
    """``tie_embeddings`` of ``llm_config.json``, where people change other values; None if there was none."""


def write_checksums(folder: Path) -> None:
    """Note sizes and hashes of a model's files beside them."""
    files = {
        path.name: {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
        for path in sorted(folder.iterdir())
        if path.is_file() and path.name not in _LEFT_OUT
    }
    settings = list(parse_json(read_bounded(folder / CONFIG_FILE, _MOST_BYTES)))
    model = folder / LLM_CONFIG_FILE
    tie = parse_json(read_bounded(model, _MOST_BYTES)).get(TIE_KEY) if model.is_file() else None
    body = {"files": files, "settings": settings, TIE_KEY: tie}
    write_json(folder / CHECKSUMS_FILE, KIND, SCHEMA, {}, body)


def read_checksums(folder: Path) -> Checksums:
    """What `write_checksums` wrote; nobody vouches for the folder.

    Raises:
        InputError: not such a file, one that was changed, or it names files outside the folder.
        StaleArtifactError: written by a newer qplan.
    """
    path = folder / CHECKSUMS_FILE
    document = parse_json(read_bounded(path, _MOST_BYTES))
    if not isinstance(document, dict):
        msg = f"{path} holds a JSON {type(document).__name__}, expected an object"
        raise InputError(msg)
    check_header(document, path, KIND, SCHEMA)
    files = document.get("files")
    if not isinstance(files, dict):
        msg = f"{path} has no object 'files'"
        raise InputError(msg)
    if SEAL in document and document[SEAL] != sha256_json({k: v for k, v in document.items() if k != SEAL}):
        raise damaged(path, "copy the model again")
    settings = document.get("settings", [])
    if not isinstance(settings, list) or not all(isinstance(key, str) for key in settings):
        msg = f"{path}: 'settings' is not a list of texts"
        raise InputError(msg)
    found = {name: _checksum(name, value) for name, value in files.items()}
    return Checksums(found, tuple(settings), TIE_KEY in document, document.get(TIE_KEY))


def _checksum(name: str, value: object) -> Checksum:
    fields = value if isinstance(value, dict) else {}
    size, digest = fields.get("bytes"), fields.get("sha256")
    plain = (
        name not in {"", ".", ".."}
        and not set(name) & {"/", "\\", "\0"}
        and len(name.encode("utf-8", "surrogatepass")) <= _MOST_NAME_BYTES
    )
    if not plain or not isinstance(size, int) or isinstance(size, bool) or not isinstance(digest, str):
        msg = f"its entry for {name[:80]!r} is not a file of the folder with 'bytes' and 'sha256'"
        raise InputError(msg)
    return Checksum(size, digest)
