"""The record beside an exported skeleton: what it was made from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Self

from qplan.artifact import MAKE_AGAIN, damaged, decoding, is_there, read_json, sha256_file, write_json
from qplan.errors import DamagedArtifactError
from qplan.run.damage import tell_damaged

KIND, SCHEMA = "qplan-skeleton", 1


@dataclass(frozen=True)
class SkeletonRecord:
    """The model and the exporter that a skeleton was made with, and its files."""

    model: str
    """sha256 of the model."""
    exporter: str
    """Version of the exporter."""
    files: Mapping[str, str] = field(default_factory=dict)
    """sha256 by file name; empty in records of earlier versions."""

    @classmethod
    def of(cls, folder: Path, model: str, exporter: str) -> Self:
        """The record of a skeleton that was just made."""
        names = sorted(path.name for path in folder.iterdir() if path.is_file())
        return cls(model, exporter, {name: sha256_file(folder / name) for name in names})

    def write(self, path: Path) -> None:
        """Write it atomically, once the skeleton is whole."""
        made_from = {"model": self.model, "exporter": self.exporter}
        write_json(path, KIND, SCHEMA, made_from, {"files": dict(self.files)})

    @classmethod
    def read(cls, path: Path) -> SkeletonRecord:
        """Read what `write` wrote.

        Raises:
            InputError: no such file, or another kind.
            StaleArtifactError: written by a newer qplan.
        """
        document = read_json(path, KIND, SCHEMA, remedy=MAKE_AGAIN)
        with decoding(path, MAKE_AGAIN):
            files = dict(document.get("files", {}))
            if not all(isinstance(text, str) for text in files.values()) or any("/" in name for name in files):
                raise damaged(path, MAKE_AGAIN)
            return cls(document["inputs"]["model"], document["inputs"]["exporter"], files)

    @classmethod
    def kept(cls, path: Path) -> SkeletonRecord | None:
        """The record, if there is one; if it or a file of its skeleton was damaged, that is told, and there is none.

        Raises:
            StaleArtifactError: written by a newer qplan.
        """
        if not is_there(path):
            return None
        try:
            found = cls.read(path)
            found._check(path.with_suffix(""))  # noqa: SLF001 - its own
        except DamagedArtifactError as error:
            tell_damaged(error)
            return None
        return found

    def _check(self, folder: Path) -> None:
        """Prove that the files beside the record are those that were recorded.

        Raises:
            DamagedArtifactError: they are not.
        """
        for path in (folder / name for name in self.files):
            status = path.stat() if is_there(path) else None
            known = status and _sha256_once(path, status.st_size, status.st_mtime_ns, status.st_ino)
            if known != self.files[path.name]:
                raise damaged(path, MAKE_AGAIN)


@lru_cache(maxsize=64)
def _sha256_once(path: Path, size: int, mtime_ns: int, inode: int) -> str:  # noqa: ARG001 - what shows a change
    return sha256_file(path)
