"""The record beside an exported skeleton: what it was made from."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from qplan.artifact import MAKE_AGAIN, decoding, read_json, write_json
from qplan.errors import DamagedArtifactError
from qplan.run.damage import tell_damaged

KIND, SCHEMA = "qplan-skeleton", 1


@dataclass(frozen=True)
class SkeletonRecord:
    """The model and the exporter that a skeleton was made with."""

    model: str
    """sha256 of the model."""
    exporter: str
    """Version of the exporter."""

    def write(self, path: Path) -> None:
        """Write it atomically, once the skeleton is whole."""
        write_json(path, KIND, SCHEMA, asdict(self), {})

    @classmethod
    def read(cls, path: Path) -> SkeletonRecord:
        """Read what `write` wrote.

        Raises:
            InputError: no such file, or another kind.
            StaleArtifactError: written by a newer qplan.
        """
        document = read_json(path, KIND, SCHEMA, remedy=MAKE_AGAIN)
        with decoding(path, MAKE_AGAIN):
            return cls(document["inputs"]["model"], document["inputs"]["exporter"])

    @classmethod
    def kept(cls, path: Path) -> SkeletonRecord | None:
        """The record, if there is one; one that was damaged is told and counts as none.

        Raises:
            StaleArtifactError: written by a newer qplan.
        """
        if not path.is_file():
            return None
        try:
            return cls.read(path)
        except DamagedArtifactError as error:
            tell_damaged(error)
            return None
