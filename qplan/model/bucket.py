"""Models in object storage, named by a URL that fsspec understands: fetched once into this machine's cache."""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Sequence
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from typing import Any

from qplan.artifact import new_folder, sha256_json, writing
from qplan.errors import InputError, QplanError

_URL = re.compile(r"(?!https?:)[a-z][a-z0-9+.-]*://.+")
"""Web servers list no folders."""


def is_url(source: str) -> bool:
    """Whether a user's word for a model is a URL, such as ``s3://bucket/model``."""
    return _URL.fullmatch(source) is not None


def fetch_url(url: str, patterns: Sequence[str]) -> Path:
    """The folder of a model's files, fetched unless the cache holds what lies at the URL now.

    Args:
        url: of the folder that holds config.json.
        patterns: names of the files to fetch.

    Raises:
        InputError: it cannot be read, or holds no config.json.
        StorageError: the disk is full.
    """
    try:
        return _fetched(url, patterns)
    except QplanError:
        raise
    except ImportError as error:
        msg = f"{url} needs a package that is not installed: {error}"
        raise InputError(msg) from None
    except Exception as error:  # noqa: BLE001 - every kind of storage raises its own
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        msg = f"{url} cannot be read: {first}; check the URL and your credentials"
        raise InputError(msg) from None


def _fetched(url: str, patterns: Sequence[str]) -> Path:
    import fsspec  # noqa: PLC0415 - folders need none of it

    files, root = fsspec.core.url_to_fs(url)
    found = [_Entry(entry) for entry in map(partial(_followed, files), files.ls(root, detail=True)) if _is_file(entry)]
    wanted = [entry for entry in found if any(fnmatch(entry.name, pattern) for pattern in patterns)]
    if not any(entry.name == "config.json" for entry in wanted):
        msg = f"{url} holds no config.json; give the folder of a Hugging Face causal language model"
        raise InputError(msg)
    folder = _cache() / sha256_json([url, sorted(entry.stamp for entry in wanted)])[:16]
    with writing(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = folder.with_suffix(".lock").open("w")
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.is_dir():
            with new_folder(folder) as draft:
                for entry in wanted:
                    files.get_file(entry.path, str(draft / entry.name))
    return folder


def _followed(files: Any, entry: dict[str, Any]) -> dict[str, Any]:  # noqa: ANN401 - a file system
    """A listing's entry; of a link, as in folders that the Hugging Face hub makes, what it leads to."""
    if not entry.get("islink"):
        return entry
    target = os.path.realpath(entry["name"])
    return {**files.info(target), "name": entry["name"]} if files.exists(target) else entry


def _is_file(entry: dict[str, Any]) -> bool:
    return bool(entry["type"] == "file")


class _Entry:
    """A file in a listing."""

    def __init__(self, listed: dict[str, Any]) -> None:
        self.path = str(listed["name"])
        self.name = self.path.rsplit("/", 1)[-1]
        marks = (listed.get(key) for key in ("ETag", "etag", "md5Hash", "LastModified", "mtime", "created"))
        self.stamp = [self.name, str(listed.get("size")), *(str(mark) for mark in marks if mark is not None)]


def _cache() -> Path:
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "qplan" / "models"
