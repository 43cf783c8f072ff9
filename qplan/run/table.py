"""The sensitivity table: what every format of every tensor costs in accuracy, per calibration batch."""

from __future__ import annotations

import io
import json
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import product
from operator import attrgetter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from qplan.artifact import (
    HEADER_KEYS,
    SEAL,
    check_header,
    damaged,
    decoding,
    header,
    is_there,
    parse_json,
    sha256_json,
    write_bytes,
)
from qplan.card import ModelCard
from qplan.errors import DamagedArtifactError, InputError, MeasurementError
from qplan.formats import QuantFormat
from qplan.notes import Note
from qplan.run.additivity import JointPoint, predict_joint
from qplan.run.computing import computed_rows
from qplan.run.decode import decode_artifact
from qplan.run.measurement import COLUMNS, Loss, Measurement, measurement_of, summarize
from qplan.run.metrics import METRICS, values_of
from qplan.run.monotone import ordered_losses
from qplan.settings import Arithmetic, DynamicOption, Memory, Mode, memories_of

KIND, SCHEMA = "qplan-sensitivity", 5

_REMEDY = "make it again with the same 'qplan analyze' command: measurements are kept"

_HASHED_AS = {"wide-scales": "scales have 32 bits: engine {engine} reads no others"}
"""Notes that are added to tables after they were read, as qplan 3 hashed them: its plans hold such hashes. They are
not sentences for people and must never be reworded."""


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
    """Where the tokens came from, for people."""
    calibration_sha256: str
    seed: int
    mode: Mode = "measured"
    rounding: str = "rtn"
    """How integers were chosen: to nearest (``rtn``), or so that less is lost, see `qplan.rounding.rounder`."""
    draws: int = 1
    """Times that labels are sampled for each sequence, where gradients are used."""
    dynamic_option: DynamicOption = 0
    """MNN's ``dynamic_option`` that int8 activations are rounded with: a scale per token, or per block (2)."""
    drawn: int | None = None
    """Output features of every tensor that losses are estimated from; None for all."""
    arithmetic: Arithmetic = "x86"
    """The back end whose int8 activations losses under memory low are about."""

    def to_json(self) -> dict[str, object]:
        """As JSON values; without what tables of earlier versions do not have, so that their hashes stay."""
        later = {"drawn": None, "arithmetic": "x86"}
        return {key: value for key, value in asdict(self).items() if key not in later or value != later[key]}


@dataclass(frozen=True)
class SensitivityTable:
    """All measurements of one run."""

    model: ModelCard
    conditions: Conditions
    reference_nll_nats: float
    """Mean negative log-likelihood of the calibration text under FP32."""
    notes: tuple[Note, ...]
    """What a reader must know, e.g. formats whose block was changed for a tensor."""
    measurements: tuple[Measurement, ...]
    joint: tuple[JointPoint, ...] = ()
    """Plans along the frontier, measured whole: how far losses are from adding up."""

    @cached_property
    def sha256(self) -> str:
        """Hash of the content, not of the file."""
        meta = self._meta() | {"notes": [_hashed(note) for note in self.notes]}
        return sha256_json([meta, [_row(m) for m in self.measurements]])

    @property
    def goal(self) -> Memory:
        """The memory setting that plans are optimized for."""
        return self.conditions.memory

    @property
    def memories(self) -> tuple[Memory, ...]:
        """The memory settings that were measured, the goal first."""
        return memories_of(self.goal)

    def formats_of(self, tensor: str) -> tuple[QuantFormat, ...]:
        """Formats measured for a tensor, widest first; none for one that was not measured."""
        return self._formats.get(tensor, ())

    @cached_property
    def _formats(self) -> dict[str, tuple[QuantFormat, ...]]:
        """Formats by tensor name. Cached: they are looked up for every tensor, and there are many rows."""
        names: dict[str, dict[str, None]] = {}
        for m in self.measurements:
            names.setdefault(m.tensor, {})[m.format] = None
        return {
            tensor: tuple(sorted(map(QuantFormat.parse, found), key=lambda f: (-f.bits, f.block, f.symmetric)))
            for tensor, found in names.items()
        }

    def under(self, memory: Memory) -> SensitivityTable:
        """The table with another memory setting as its goal; itself for its own."""
        if memory == self.goal:
            return self
        return self._under.setdefault(memory, replace(self, conditions=replace(self.conditions, memory=memory)))

    @cached_property
    def _under(self) -> dict[Memory, SensitivityTable]:
        """Cached, so that losses are summarized once for each setting."""
        return {}

    def computing(self, arithmetic: Arithmetic, option: DynamicOption) -> SensitivityTable | None:
        """The table as another back end would have it, or with another ``dynamic_option``; itself for its own.

        Losses that were measured on whole models are replaced too: by what the weights lose, and what activations add.
        Formats that the engine garbles under the option are left out.

        Returns:
            The table; None if it does not hold what it takes: it was measured without gradients, or by qplan 0.4.
        """
        own = self.conditions
        if self.goal == "normal" or (own.arithmetic, own.dynamic_option) == (arithmetic, option):
            return self
        if (arithmetic, option) not in self._computing:
            self._computing[arithmetic, option] = self._computed(arithmetic, option)
        return self._computing[arithmetic, option]

    @cached_property
    def _computing(self) -> dict[tuple[Arithmetic, DynamicOption], SensitivityTable | None]:
        """Cached, so that rows are computed and losses summarized once for each back end and option."""
        return {}

    def _computed(self, arithmetic: Arithmetic, option: DynamicOption) -> SensitivityTable | None:
        """`computing`, for another arithmetic or option than the table's own."""
        own = self.conditions
        # a scale per token is the same on x86 and ARM
        alike = "float" not in {arithmetic, own.arithmetic} and option == own.dynamic_option == 0
        if alike and arithmetic != "arm-fp16":
            rows: tuple[Measurement, ...] | None = self.measurements
        else:
            rows = computed_rows(self.measurements, arithmetic, option, same_activations=alike)
        conditions = replace(own, arithmetic=arithmetic, dynamic_option=option)
        return None if rows is None else replace(self, conditions=conditions, measurements=rows)

    def losses(self, memory: Memory | None = None) -> dict[str, dict[str, Loss]]:
        """Loss by tensor name and format name, tensors in order of execution; the goal's memory setting by default."""
        found = self._losses.get(memory or self.goal)
        if found is None:
            return {spec.name: {} for spec in self.model.planned}
        return {tensor: dict(row) for tensor, row in found.items()}

    @cached_property
    def _losses(self) -> dict[Memory, dict[str, dict[str, Loss]]]:
        """By memory setting. Cached: a plan needs them several times, and plans are solved again in an instant."""
        cells: dict[Memory, dict[str, dict[str, list[Measurement]]]] = {}
        for m in self.measurements:
            tensors = cells.setdefault(m.memory, {spec.name: {} for spec in self.model.planned})
            tensors[m.tensor].setdefault(m.format, []).append(m)
        return {
            memory: {t: {f: summarize(ms) for f, ms in row.items()} for t, row in tensors.items()}
            for memory, tensors in cells.items()
        }

    def kl(self, memory: Memory) -> dict[str, dict[str, float]]:
        """Mean KL in nats per token by tensor name and format name, under a memory setting."""
        return {t: {f: loss.kl_nats for f, loss in row.items()} for t, row in self.losses(memory).items()}

    def ordered_kl(self, memory: Memory) -> dict[str, dict[str, float]]:
        """`kl` as plans count it: no wider format loses more than a narrower one, see `qplan.run.monotone`."""
        found = self._ordered.get(memory)
        if found is None:
            found = self._ordered[memory] = {
                tensor: ordered_losses(
                    {name: loss.kl_nats for name, loss in row.items()},
                    {name: loss.stderr_nats for name, loss in row.items()},
                    exact_floats=self.conditions.arithmetic != "arm-fp16",
                )
                for tensor, row in self.losses(memory).items()
            }
        return found

    @cached_property
    def _ordered(self) -> dict[Memory, dict[str, dict[str, float]]]:
        """Cached by memory setting: plans are solved again in an instant."""
        return {}

    def predict_joint(self, sum_nats: float, memory: Memory | None = None) -> float:
        """Predict a plan's joint loss in nats from the sum of its single losses.

        See `qplan.run.additivity.predict_joint`.
        """
        return predict_joint(sum_nats, [point for point in self.joint if point.memory == (memory or self.goal)])

    def check_complete(self) -> None:
        """Prove that every linear was measured in every batch and format, with usable numbers.

        An untied embedding is measured on some batches.

        Raises:
            MeasurementError: something is missing, not finite, or negative.
        """
        batches = {m.batch for m in self.measurements}
        seen = {(m.tensor, m.format, m.memory, m.batch) for m in self.measurements}
        measured: dict[str, set[str]] = {}
        for measurement in self.measurements:
            measured.setdefault(measurement.tensor, set()).add(measurement.format)
        embedding = self.model.embedding
        if embedding is not None and embedding.name not in measured:
            msg = f"{embedding.name} was never measured"
            raise MeasurementError(msg)
        for spec in self.model.tensors:
            formats = measured.get(spec.name)
            if not formats or not batches:
                msg = f"{spec.name} was never measured; the calibration did not reach it"
                raise MeasurementError(msg)
            cells = product(formats, self.memories, batches)
            missing = [cell for cell in cells if (spec.name, *cell) not in seen]
            if missing:
                msg = f"{spec.name} lacks measurements {missing[:3]}; run the same analyze command again to complete"
                raise MeasurementError(msg)
        for m in self.measurements:
            for name, value in values_of(m).items():
                if value is not None and not METRICS[name].possible(value):
                    msg = f"{m.tensor} in {m.format}, batch {m.batch}: {name} of {value} is impossible"
                    raise MeasurementError(msg)

    def _meta(self) -> dict[str, object]:
        return {
            "model": self.model.to_json(),
            "conditions": self.conditions.to_json(),
            "reference_nll_nats": self.reference_nll_nats,
            "notes": [note.to_json() for note in self.notes],
            "joint": [asdict(point) for point in self.joint],
        }

    def write(self, path: Path) -> None:
        """Write a Parquet file, whole or not at all, after `check_complete`."""
        self.check_complete()
        inputs = {"model": self.model.sha256, "calibration": self.conditions.calibration_sha256}
        head = header(KIND, SCHEMA, inputs)
        meta = head | self._meta() | {SEAL: sha256_json([head, self.sha256])}
        columns = {name: [getattr(m, name) for m in self.measurements] for name in COLUMNS}
        table = pa.table(columns).replace_schema_metadata({"qplan": json.dumps(meta, sort_keys=True)})
        buffer = io.BytesIO()
        pq.write_table(table, buffer, write_page_checksum=True)
        write_bytes(path, buffer.getvalue())

    @classmethod
    def read(cls, path: Path) -> SensitivityTable:
        """Read a table.

        Raises:
            InputError: no such file or not a sensitivity table.
            DamagedArtifactError: it is not what was written.
            StaleArtifactError: written by a newer qplan.
        """
        if not is_there(path):
            msg = f"{path} does not exist; run 'qplan analyze' first"
            raise InputError(msg)
        try:
            # not read_table, which imports pandas and much more before it reads a file like this
            with pq.ParquetFile(path, page_checksum_verification=True) as file:
                table = file.read()
            text = (table.schema.metadata or {}).get(b"qplan", b"{}").decode()
            rows = table.to_pylist()
        except (pa.ArrowException, OSError, ValueError, MemoryError) as error:
            msg = f"{path} is not a readable Parquet file ({error}); {_REMEDY}"
            raise DamagedArtifactError(msg) from None
        with decoding(path, _REMEDY):
            meta = parse_json(text.encode())
            check_header(meta, path, KIND, SCHEMA)
            meta.setdefault("joint", [])
            body = {name: meta[name] for name in ("model", "conditions", "reference_nll_nats", "notes", "joint")}
            decode_artifact(_Meta, body, path, _REMEDY, text=text)
            found = cls(
                ModelCard.from_json(meta["model"]),
                Conditions(**(meta["conditions"] | {"formats": tuple(meta["conditions"]["formats"])})),
                meta["reference_nll_nats"],
                tuple(map(Note.of_json, meta["notes"])),
                tuple(map(measurement_of, rows)),
                tuple(JointPoint(**point) for point in meta["joint"]),
            )
            head = {name: value for name, value in meta.items() if name in HEADER_KEYS - {SEAL}}
            if SEAL in meta and meta[SEAL] != sha256_json([head, found.sha256]):
                raise damaged(path, _REMEDY)
            found._check_names(path)  # noqa: SLF001 - its own
        return found

    def _check_names(self, path: Path) -> None:
        """Prove that what was measured are tensors of the model, in formats, under settings that were asked for.

        Raises:
            InputError: something else was.
        """
        known = {spec.name for spec in self.model.planned}
        for m in self.measurements:
            if m.tensor not in known or m.memory not in self.memories:
                msg = f"{path} holds a measurement of {m.tensor} under memory {m.memory}, which the model lacks"
                raise InputError(msg)
        for fmt in {m.format for m in self.measurements}:
            QuantFormat.parse(fmt)


@dataclass(frozen=True)
class _Meta:
    """What a table's metadata hold besides the header, to check their types."""

    model: ModelCard
    conditions: Conditions
    reference_nll_nats: float
    notes: tuple[Note, ...]
    joint: tuple[JointPoint, ...]


_HASHED = (
    *("tensor", "format", "memory", "batch", "tokens"),
    *("kl_nats", "kl_p99_nats", "top1", "nll_nats", "sqnr_db", "cosine"),
    *("source", "stderr_nats"),
)
"""Columns whose values will always be hashed in this order. Newer columns are hashed by name where they are known, so
that tables of older versions keep their hash."""
_LATER = tuple(name for name in COLUMNS if name not in _HASHED)


def _hashed(note: Note) -> object:
    """A note as it enters a table's hash; texts enter as they are, as in tables of earlier versions."""
    frozen = _HASHED_AS.get(note.code)
    return frozen.format(**note.values) if frozen is not None and note.is_known else note.to_json()


_HASHED_OF, _LATER_OF = attrgetter(*_HASHED), attrgetter(*_LATER)


def _row(measurement: Measurement) -> list[object]:
    # repr keeps inf, which JSON lacks
    later = zip(_LATER, _LATER_OF(measurement), strict=True)
    return [*map(repr, _HASHED_OF(measurement)), *([name, repr(value)] for name, value in later if value is not None)]
