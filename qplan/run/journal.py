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
from typing import Any, Self

from qplan.artifact import SEAL, is_there, parse_json, sha256_json, write_bytes, writing
from qplan.errors import InputError, StaleArtifactError
from qplan.run.damage import tell_damaged
from qplan.run.measurement import Measurement, measurement_of
from qplan.run.metrics import METRICS, values_of

KIND, SCHEMA = "qplan-journal", 1

_SEAL_DIGITS = 16
"""Digits of a line's hash: 64 bits."""

_START_OVER = "use another folder (--run DIR) or start over (--restart)"

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

    A text file: a header line with the run's fingerprint, then one JSON object per line, with a hash that it shares
    with the fingerprint. A last line without a newline was being written when the run was killed, and is removed;
    lines that were damaged otherwise are told, removed, and measured again.
    """

    def __init__(self, path: Path, fingerprint: Mapping[str, Any]) -> None:
        """Open or start a journal.

        Args:
            path: the file; its folder is made if need be.
            fingerprint: what the measurements depend on, JSON values by readable names.

        Raises:
            StaleArtifactError: the file was made under another fingerprint; says what changed.
            StorageError: the disk is full.
        """
        super().__init__()
        self.path = path
        self._synced = time.monotonic()
        self._fingerprint: dict[str, Any] = json.loads(json.dumps(fingerprint))
        head = {"kind": KIND, "schema": SCHEMA, "fingerprint": self._fingerprint}
        lines = _whole_lines(path)
        kept, whole = self._read(lines) if lines else ([], False)
        if not whole:
            write_bytes(path, b"".join([_line(head | {SEAL: self._seal(head)}), *kept]))
        self._stream = path.open("ab", buffering=0)

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Sync and close the file."""
        try:
            with writing(self.path):
                os.fsync(self._stream.fileno())
        finally:
            self._stream.close()

    def add(self, measurement: Measurement) -> None:
        """Write a measurement.

        Raises:
            StorageError: the disk is full.
        """
        self._append(_encode(measurement))
        super().add(measurement)

    def add_reference(self, record: ReferenceRecord) -> None:
        """Write what the unchanged model does on a batch.

        Raises:
            StorageError: the disk is full.
        """
        self._append({"reference": asdict(record)})
        super().add_reference(record)

    def _append(self, value: Mapping[str, Any]) -> None:
        """Write a line, all of it or nothing."""
        line, before = _line({**value, SEAL: self._seal(value)}), os.fstat(self._stream.fileno()).st_size
        with writing(self.path, need=len(line)):
            try:
                rest = memoryview(line)
                while rest:
                    rest = rest[self._stream.write(rest) :]
                if time.monotonic() - self._synced >= _SYNC_S:
                    os.fsync(self._stream.fileno())
                    self._synced = time.monotonic()
            except OSError:
                os.ftruncate(self._stream.fileno(), before)
                raise

    def _seal(self, value: Mapping[str, Any]) -> str:
        """Hash of a line and the fingerprint, so that a line is known even if the header was damaged."""
        return sha256_json([self._fingerprint, value])[:_SEAL_DIGITS]

    def _read(self, lines: list[bytes]) -> tuple[list[bytes], bool]:
        """Keep what the lines hold.

        Returns:
            The lines of measurements that are whole, and whether all of the file is.

        Raises:
            StaleArtifactError: the file was made under another fingerprint, or is something else.
        """
        head = _parse(lines[0])
        sound = head is not None and (SEAL not in head or self._is_whole(head))
        if head is not None and sound:
            self._check(head, self._fingerprint)
        kept = [line for line in lines[1:] if self._keep(_parse(line), sealed=not sound)]
        lost = len(lines) - 1 - len(kept)
        if not sound and not kept:
            msg = f"{self.path} is not a journal of measurements, or its header was damaged; {_START_OVER}"
            raise StaleArtifactError(msg)
        if not sound:
            tell_damaged(f"{self.path}: the header was damaged; it is written again")
        if lost:
            tell_damaged(f"{self.path}: {lost:,} of {len(lines) - 1:,} lines were damaged; they are measured again")
        return kept, sound and not lost

    def _is_whole(self, value: Mapping[str, Any]) -> bool:
        """Whether a line matches its hash."""
        rest = {key: item for key, item in value.items() if key != SEAL}
        own = rest.get("fingerprint", self._fingerprint)
        return SEAL in value and bool(value[SEAL] == sha256_json([own, rest])[:_SEAL_DIGITS])

    def _check(self, head: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
        schema = head.get("schema")
        if head.get("kind") != KIND or not isinstance(schema, int):
            msg = f"{self.path} is not a journal of measurements; {_START_OVER}"
            raise StaleArtifactError(msg)
        if schema != SCHEMA:
            msg = f"{self.path} has schema {schema}, this qplan writes {SCHEMA}; {_START_OVER}"
            raise StaleArtifactError(msg)
        _check_same(self.path, head.get("fingerprint", {}), expected)

    def _keep(self, value: dict[str, Any] | None, *, sealed: bool) -> bool:
        """Keep what a line holds; False if it was damaged.

        Args:
            value: the line; None if it was no JSON object.
            sealed: whether it needs a hash: without the header, nothing else shows what it belongs to.
        """
        if value is None or (not self._is_whole(value) if SEAL in value else sealed):
            return False
        body = {key: item for key, item in value.items() if key != SEAL}
        try:
            if "reference" in body:
                super().add_reference(_reference(body["reference"]))
            else:
                super().add(_decode(body))
        except (TypeError, ValueError):
            return False
        return True


def begun_with(path: Path) -> dict[str, Any]:
    """The fingerprint of the journal of a run that was begun; empty without one, or if its first line was damaged."""
    if not is_there(path):
        return {}
    with path.open("rb") as stream:
        head = _parse(stream.readline())
    if head is None or head.get("kind") != KIND:
        return {}
    seal, found = head.pop(SEAL, None), head.get("fingerprint")
    whole = isinstance(found, dict) and seal in {None, sha256_json([found, head])[:_SEAL_DIGITS]}
    return dict(found) if whole and isinstance(found, dict) else {}


def check_begun(path: Path, known: Mapping[str, Any]) -> None:
    """Refuse what the run that a journal holds does not go on with, as far as that is known before anything is loaded.

    Args:
        path: the journal, whether or not it is there.
        known: a part of the fingerprint.

    Raises:
        StaleArtifactError: it differs; says how.
    """
    found = begun_with(path)
    if found:
        _check_same(path, {key: found.get(key) for key in known}, json.loads(json.dumps(known)))


def _check_same(path: Path, found: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Hold two fingerprints against each other.

    Raises:
        StaleArtifactError: they differ; says how.
    """
    changes = [
        f"{key} was {_short(found.get(key))}, now {_short(expected.get(key))}"
        for key in dict.fromkeys([*expected, *found])
        if found.get(key) != expected.get(key)
    ]
    if changes:
        msg = f"{path} holds measurements of another run: {'; '.join(changes)}. To go on, {_START_OVER}"
        raise StaleArtifactError(msg)


def _encode(measurement: Measurement) -> dict[str, Any]:
    """JSON has no infinity: in a metric that may be infinite, null stands for it, and an unknown value is left out."""
    given = asdict(measurement)
    known = {key: value for key, value in given.items() if value is not None or key not in _UNBOUNDED}
    return known | {key: None for key in _UNBOUNDED if math.isinf(given[key] or 0.0)}


def _decode(value: Mapping[str, Any]) -> Measurement:
    infinite: dict[str, Any] = {key: math.inf for key in _UNBOUNDED if key in value and value[key] is None}
    found = measurement_of(dict(value) | infinite)
    for name, metric in values_of(found).items():
        if metric is not None and not METRICS[name].possible(metric):
            msg = f"{name} of {metric} is impossible"
            raise ValueError(msg)
    return found


def _reference(value: Mapping[str, Any]) -> ReferenceRecord:
    match value:
        case {"batch": int(), "labels": int(), "nll_nats": float() as nats} if math.isfinite(nats):
            return ReferenceRecord(**value)
    msg = f"{value} is no record of the reference"
    raise ValueError(msg)


def _line(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, allow_nan=False).encode() + b"\n"


def _parse(line: bytes) -> dict[str, Any] | None:
    """A line's object; None if it is none."""
    try:
        value = parse_json(line)
    except InputError:
        return None
    return value if isinstance(value, dict) else None


def _whole_lines(path: Path) -> list[bytes]:
    if not is_there(path):
        return []
    data = path.read_bytes()
    end = data.rfind(b"\n") + 1
    if end < len(data):
        with path.open("r+b") as stream:
            stream.truncate(end)
    return [line + b"\n" for line in data[:end].split(b"\n")[:-1]]


def _short(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return f"{text[:12]}..." if len(text) == 64 else text
