"""What a command took of a machine: time, and the most memory at once."""

from __future__ import annotations

import resource
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from qplan.artifact import body_of, is_there, read_json, write_json
from qplan.run.decode import decode_artifact

KIND, SCHEMA = "qplan-took", 1

_REMEDY = "remove it: only the report's lines on time and memory hang on it"


@dataclass(frozen=True, kw_only=True)
class Took:
    """Time and memory of one command."""

    command: str
    """``analyze`` or ``emit``."""
    seconds: float
    """Of the process that ended it: what an interrupted one did before is not counted."""
    peak_bytes: int
    """Peak resident memory of the largest process: qplan's own, the engine's or the exporter's."""
    resumed: bool = False
    """Whether it went on with what an interrupted process had done."""

    @classmethod
    def since(cls, begun_s: float, command: str, *, resumed: bool = False) -> Self:
        """What was taken since a time of `time.monotonic`."""
        return cls(
            command=command,
            seconds=time.monotonic() - begun_s,
            # a child's counts that of its parent when it was started, so the two cannot be told apart
            peak_bytes=max(map(_peak, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))),
            resumed=resumed,
        )

    def to_json(self) -> dict[str, Any]:
        """A JSON object."""
        return asdict(self)

    def write(self, path: Path, model_sha256: str) -> None:
        """Write it by itself, atomically."""
        write_json(path, KIND, SCHEMA, {"model": model_sha256}, self.to_json())

    @classmethod
    def read(cls, path: Path) -> Self | None:
        """Read it; None where an earlier qplan wrote none.

        Raises:
            InputError: another kind of file, or a field is missing or of another type.
            StaleArtifactError: written by a newer qplan.
        """
        if not is_there(path):
            return None
        return decode_artifact(cls, body_of(read_json(path, KIND, SCHEMA, remedy=_REMEDY)), path, _REMEDY)


def _peak(whose: int) -> int:
    """Bytes; Linux counts in kilobytes, macOS in bytes."""
    return resource.getrusage(whose).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
