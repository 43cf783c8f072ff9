"""The record beside an exported skeleton: what it was made from."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from qplan.artifact import read_json, write_json

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
        inputs = read_json(path, KIND, SCHEMA)["inputs"]
        return cls(inputs["model"], inputs["exporter"])
