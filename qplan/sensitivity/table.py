"""The sensitivity table: what every format of every tensor costs in accuracy, per calibration batch."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import product
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq

from qplan.artifact import atomic_path, check_header, header, sha256_json
from qplan.errors import InputError, MeasurementError
from qplan.formats import QuantFormat
from qplan.model.card import ModelCard

KIND, SCHEMA = "qplan-sensitivity", 1

Memory = Literal["low", "normal"]
"""MNN's ``memory`` setting: low computes with int8 activations wherever weights are integers."""


@dataclass(frozen=True)
class Measurement:
    """One tensor in one format, everything else FP32, on one calibration batch."""

    tensor: str
    """Hugging Face name."""
    format: str
    """Format's name as resolved for this tensor."""
    memory: Memory
    """MNN's ``memory`` setting whose arithmetic was emulated: ``low`` (int8 activations) or ``normal``."""
    batch: int
    tokens: int
    """Tokens whose next-token distribution was compared."""
    kl_nats: float
    """Mean over tokens of KL(FP32 || variant) at the logits."""
    kl_p99_nats: float
    """99th percentile over tokens of the same."""
    top1: float
    """Fraction of tokens whose most likely next token is unchanged."""
    nll_nats: float
    """Mean negative log-likelihood of the text under the variant; exp is the perplexity."""
    sqnr_db: float
    """Signal to quantisation noise of the tensor's own output; inf where nothing changed."""


@dataclass(frozen=True)
class Loss:
    """A format's loss over all batches."""

    kl_nats: float
    """Mean over all tokens."""
    stderr_nats: float
    """Standard error of the mean, from the spread over batches; 0 with one batch."""
    kl_p99_nats: float
    """Token-weighted mean of the batches' 99th percentiles."""
    top1: float
    nll_nats: float
    sqnr_db: float
    """Mean over batches in dB."""


@dataclass(frozen=True)
class Conditions:
    """How the measurements were made."""

    memory: Memory
    """MNN's ``memory`` setting that the model will run with. Under ``low`` both settings are measured: a plan should
    not lose where the weights alone count."""
    formats: tuple[str, ...]
    """Formats asked for, before resolution per tensor."""
    samples: int
    seq_len: int
    """Tokens per sequence."""
    batch_size: int
    """Sequences per batch."""
    calibration: str
    """What the tokens came from, for people."""
    calibration_sha256: str
    seed: int


@dataclass(frozen=True)
class SensitivityTable:
    """All measurements of one run."""

    model: ModelCard
    conditions: Conditions
    reference_nll_nats: float
    """Mean negative log-likelihood of the calibration text under FP32."""
    notes: tuple[str, ...]
    """What a reader must know, e.g. formats whose block was changed for a tensor."""
    measurements: tuple[Measurement, ...]

    @property
    def sha256(self) -> str:
        """Hash of the content, not of the file."""
        return sha256_json([self._meta(), [_row(m) for m in self.measurements]])

    @property
    def goal(self) -> Memory:
        """The memory setting that plans are optimised for."""
        return self.conditions.memory

    @property
    def memories(self) -> tuple[Memory, ...]:
        """The memory settings that were measured, the goal first."""
        return memories_of(self.goal)

    def formats_of(self, tensor: str) -> tuple[QuantFormat, ...]:
        """Formats measured for a tensor, widest first."""
        names = dict.fromkeys(m.format for m in self.measurements if m.tensor == tensor)
        return tuple(sorted((QuantFormat.parse(n) for n in names), key=lambda f: (-f.bits, f.block, f.symmetric)))

    def losses(self, memory: Memory | None = None) -> dict[str, dict[str, Loss]]:
        """Loss by tensor name and format name, tensors in order of execution; the goal's memory setting by default."""
        memory = memory or self.goal
        cells: dict[str, dict[str, list[Measurement]]] = {spec.name: {} for spec in self.model.tensors}
        for measurement in self.measurements:
            if measurement.memory != memory:
                continue
            cells[measurement.tensor].setdefault(measurement.format, []).append(measurement)
        return {t: {f: summarise(ms) for f, ms in row.items()} for t, row in cells.items()}

    def kl(self, memory: Memory) -> dict[str, dict[str, float]]:
        """Mean KL in nats per token by tensor name and format name, under a memory setting."""
        return {t: {f: loss.kl_nats for f, loss in row.items()} for t, row in self.losses(memory).items()}

    def check_complete(self) -> None:
        """Prove that every tensor was measured in every batch and format, with usable numbers.

        Raises:
            MeasurementError: something is missing, not finite, or negative.
        """
        batches = {m.batch for m in self.measurements}
        seen = {(m.tensor, m.format, m.memory, m.batch) for m in self.measurements}
        for spec in self.model.tensors:
            formats = {f for t, f, _, _ in seen if t == spec.name}
            if not formats or not batches:
                msg = f"{spec.name} was never measured; the calibration did not reach it"
                raise MeasurementError(msg)
            cells = product(formats, self.memories, batches)
            missing = [cell for cell in cells if (spec.name, *cell) not in seen]
            if missing:
                msg = f"{spec.name} lacks measurements {missing[:3]}; run the same analyze command again to complete"
                raise MeasurementError(msg)
        for m in self.measurements:
            if not math.isfinite(m.kl_nats) or m.kl_nats < 0 or not math.isfinite(m.nll_nats):
                msg = f"{m.tensor} in {m.format}, batch {m.batch}: loss of {m.kl_nats} nats is impossible"
                raise MeasurementError(msg)

    def _meta(self) -> dict[str, object]:
        return {
            "model": self.model.to_json(),
            "conditions": asdict(self.conditions),
            "reference_nll_nats": self.reference_nll_nats,
            "notes": list(self.notes),
        }

    def write(self, path: Path) -> None:
        """Write a Parquet file, whole or not at all, after `check_complete`."""
        self.check_complete()
        inputs = {"model": self.model.sha256, "calibration": self.conditions.calibration_sha256}
        meta = header(KIND, SCHEMA, inputs) | self._meta()
        columns = {f.name: [getattr(m, f.name) for m in self.measurements] for f in fields(Measurement)}
        table = pa.table(columns).replace_schema_metadata({"qplan": json.dumps(meta, sort_keys=True)})
        with atomic_path(path) as temporary:
            pq.write_table(table, temporary)

    @classmethod
    def read(cls, path: Path) -> SensitivityTable:
        """Read a table.

        Raises:
            InputError: no such file or not a sensitivity table.
            StaleArtifactError: written by a newer qplan.
        """
        if not path.is_file():
            msg = f"{path} does not exist; run 'qplan analyze' first"
            raise InputError(msg)
        try:
            table = pq.read_table(path)
        except (pa.ArrowInvalid, OSError) as error:
            msg = f"{path} is not a readable Parquet file ({error}); run 'qplan analyze' again"
            raise InputError(msg) from None
        meta = json.loads((table.schema.metadata or {}).get(b"qplan", b"{}"))
        check_header(meta, path, KIND, SCHEMA)
        return cls(
            ModelCard.from_json(meta["model"]),
            Conditions(**(meta["conditions"] | {"formats": tuple(meta["conditions"]["formats"])})),
            meta["reference_nll_nats"],
            tuple(meta["notes"]),
            tuple(Measurement(**row) for row in table.to_pylist()),
        )


def memories_of(goal: Memory) -> tuple[Memory, ...]:
    """The memory settings to measure for a goal, the goal first."""
    return (goal,) if goal == "normal" else (goal, "normal")


def _row(measurement: Measurement) -> list[object]:
    # repr keeps inf, which JSON lacks
    return [repr(value) for value in asdict(measurement).values()]


def summarise(measurements: Sequence[Measurement]) -> Loss:
    """Combine the batches of one tensor and format, weighted by tokens."""
    tokens = sum(m.tokens for m in measurements)
    mean = _weighted(measurements, {m.batch: m.kl_nats for m in measurements}, tokens)
    spread = sum((m.tokens / tokens) ** 2 * (m.kl_nats - mean) ** 2 for m in measurements)
    count = len(measurements)
    return Loss(
        mean,
        math.sqrt(spread * count / (count - 1)) if count > 1 else 0.0,
        _weighted(measurements, {m.batch: m.kl_p99_nats for m in measurements}, tokens),
        _weighted(measurements, {m.batch: m.top1 for m in measurements}, tokens),
        _weighted(measurements, {m.batch: m.nll_nats for m in measurements}, tokens),
        sum(m.sqnr_db for m in measurements) / count,
    )


def _weighted(measurements: Sequence[Measurement], values: Mapping[int, float], tokens: int) -> float:
    return sum(m.tokens * values[m.batch] for m in measurements) / tokens
