"""An append-only journal of measurements: a killed run resumes where it stopped."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

from qplan.errors import StaleArtifactError
from qplan.run.measurement import Measurement
from qplan.run.metrics import METRICS

KIND, SCHEMA = "qplan-journal", 1

_SYNC_S = 1.0
"""Longest time until a measurement is safe on disk."""


_UNBOUNDED = tuple(name for name, metric in METRICS.items() if metric.possible(math.inf))

Cell = tuple[str, str, str, int, str]
"""Tensor, format, memory, batch, source."""


def cell_of(measurement: Measurement) -> Cell:
    """What identifies a measurement."""
    return measurement.tensor, measurement.format, measurement.memory, measurement.batch, measurement.source


@dataclass(frozen=True)
class ReferenceRecord:
    """The unchanged model on one batch."""

    batch: int
    labels: int
    """Tokens whose successor is known."""
    nll_nats: float
    """Mean negative log-likelihood over them."""


class Memo:
    """Measurements that are kept in memory alone: a journal without a file."""

    def __init__(self) -> None:
        """Start empty."""
        self.measurements: dict[Cell, Measurement] = {}
        self.references: dict[int, ReferenceRecord] = {}

    def add(self, measurement: Measurement) -> None:
        """Keep a measurement."""
        self.measurements[cell_of(measurement)] = measurement

    def add_reference(self, record: ReferenceRecord) -> None:
        """Keep what the unchanged model does on a batch."""
        self.references[record.batch] = record


class Journal(Memo):
    """Measurements of one run, each written as it is made.

    A text file: a header line with the run's fingerprint, then one JSON object per line. A last line without a
    newline was being written when the run was killed, and is removed.
    """

    def __init__(self, path: Path, fingerprint: Mapping[str, Any]) -> None:
        """Open or start a journal.

        Args:
            path: the file; its folder is made if need be.
            fingerprint: what the measurements depend on, JSON values by readable names.

        Raises:
            StaleArtifactError: the file was made under another fingerprint; says what changed.
        """
        super().__init__()
        self.path = path
        self._synced = time.monotonic()
        lines = _whole_lines(path)
        if lines:
            self._check(json.loads(lines[0]), json.loads(json.dumps(fingerprint)))
            for line in lines[1:]:
                self._keep(json.loads(line))
            self._stream: TextIO = path.open("a", encoding="utf-8")
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._stream = path.open("w", encoding="utf-8")
            self._append({"kind": KIND, "schema": SCHEMA, "fingerprint": dict(fingerprint)}, sync=True)

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Sync and close the file."""
        self._append(None, sync=True)
        self._stream.close()

    def add(self, measurement: Measurement) -> None:
        """Write a measurement."""
        self._append(_encode(measurement))
        super().add(measurement)

    def add_reference(self, record: ReferenceRecord) -> None:
        """Write what the unchanged model does on a batch."""
        self._append({"reference": asdict(record)})
        super().add_reference(record)

    def _append(self, value: Mapping[str, Any] | None, *, sync: bool = False) -> None:
        if value is not None:
            self._stream.write(json.dumps(value, allow_nan=False) + "\n")
        self._stream.flush()
        if sync or time.monotonic() - self._synced >= _SYNC_S:
            os.fsync(self._stream.fileno())
            self._synced = time.monotonic()

    def _check(self, head: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
        remedy = "use another folder (--run DIR) or start over (--restart)"
        schema = head.get("schema")
        if head.get("kind") != KIND or not isinstance(schema, int):
            msg = f"{self.path} is not a journal of measurements; {remedy}"
            raise StaleArtifactError(msg)
        if schema != SCHEMA:
            msg = f"{self.path} has schema {schema}, this qplan writes {SCHEMA}; {remedy}"
            raise StaleArtifactError(msg)
        found = head.get("fingerprint", {})
        changes = [
            f"{key} was {_short(found.get(key))}, now {_short(expected.get(key))}"
            for key in dict.fromkeys([*expected, *found])
            if found.get(key) != expected.get(key)
        ]
        if changes:
            msg = f"{self.path} holds measurements of another run: {'; '.join(changes)}. To go on, {remedy}"
            raise StaleArtifactError(msg)

    def _keep(self, value: dict[str, Any]) -> None:
        if "reference" in value:
            super().add_reference(ReferenceRecord(**value["reference"]))
            return
        super().add(_decode(value))


def _encode(measurement: Measurement) -> dict[str, Any]:
    """JSON has no infinity: in a metric that may be infinite, null stands for it, and an unknown value is left out."""
    given = asdict(measurement)
    known = {key: value for key, value in given.items() if value is not None or key not in _UNBOUNDED}
    return known | {key: None for key in _UNBOUNDED if math.isinf(given[key] or 0.0)}


def _decode(value: Mapping[str, Any]) -> Measurement:
    infinite: dict[str, Any] = {key: math.inf for key in _UNBOUNDED if key in value and value[key] is None}
    return Measurement(**(dict(value) | infinite))


def _whole_lines(path: Path) -> list[str]:
    if not path.is_file():
        return []
    data = path.read_bytes()
    end = data.rfind(b"\n") + 1
    if end < len(data):
        with path.open("r+b") as stream:
            stream.truncate(end)
    return data[:end].decode("utf-8").splitlines()


def _short(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return f"{text[:12]}..." if len(text) == 64 else text
