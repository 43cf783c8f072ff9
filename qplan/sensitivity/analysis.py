"""One analysis: the entries to find, those that are known already, and the resulting table."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from qplan.card import ModelCard
from qplan.errors import MeasurementError
from qplan.formats import QuantFormat
from qplan.model.load import LoadedModel
from qplan.notes import Note, few, note
from qplan.rounding import Int8Activations
from qplan.rounding.rounder import Rounder
from qplan.run.calibration import CalibrationSet
from qplan.run.journal import Journal, Memo
from qplan.run.measurement import LARGEST_HALF, LEAST_HALF_PEAK, Measurement, Source
from qplan.run.table import Conditions, SensitivityTable
from qplan.sensitivity.menu import Menu, resolve_menu
from qplan.sensitivity.silent import SilentTensors
from qplan.sensitivity.stored_weights import StoredWeights
from qplan.settings import DynamicOption, Memory, Mode, memories_of
from qplan.tensors import Role

_ROWS_SCHEMA = 5
"""The table schema that last changed what a measurement means; older journals are not reused."""

EMBEDDING_TOKENS = 1024
"""Fewest tokens that an untied embedding is measured on, in whole batches: one more format costs a forward pass."""

Entry = tuple[str, str, Memory]
"""Tensor, format, memory: one entry of the table, measured in every batch."""


@dataclass(frozen=True)
class Analysis:
    """What every mode of an analysis needs."""

    loaded: LoadedModel
    menu: Menu
    menu_notes: tuple[Note, ...]
    conditions: Conditions
    batches: tuple[Tensor, ...]
    """Tokens, int64 ``[batch_size, seq_len]`` each; the last batch may have fewer rows."""
    stored: StoredWeights
    kept: Memo
    """Measurements known already."""

    @property
    def activations(self) -> Int8Activations:
        """The int8 activations that losses under memory low are measured with."""
        return Int8Activations("prefill", self.conditions.dynamic_option)

    def entries(self) -> Iterator[tuple[str, QuantFormat, Memory]]:
        """All entries of the table, in its order."""
        for name, formats in self.menu.items():
            for fmt in formats:
                for memory in memories_of(self.conditions.memory):
                    yield name, fmt, memory

    def changes_nothing(self, name: str, fmt: QuantFormat, memory: Memory) -> bool:
        """Whether storage keeps every weight bit for bit and activations stay floats."""
        return (fmt.is_float or memory == "normal") and self.stored.unchanged(name, fmt)

    @cached_property
    def silent(self) -> SilentTensors:
        """Proves losses of exactly 0."""
        return SilentTensors(self.loaded, self.batches[0][:1], self.stored, self.activations)

    def rows(self, entry: Entry, source: Source) -> list[Measurement]:
        """An entry's measurements, batch by batch."""
        return [self.kept.measurements[(*entry, batch, source)] for batch in range(len(self.batches))]

    def all_rows(self, source: Source) -> list[Measurement]:
        """The measurements of every entry, in the table's order."""
        return [row for name, fmt, memory in self.entries() for row in self.rows((name, fmt.name, memory), source)]

    def embedding_entries(self) -> Iterator[tuple[str, QuantFormat, Memory]]:
        """Entries of an untied embedding, which `qplan.sensitivity.embedding` measures; none if there is no such."""
        card = self.loaded.card
        for fmt in card.embedding_formats(map(QuantFormat.parse, self.conditions.formats)):
            if card.embedding is not None:
                yield from ((card.embedding.name, fmt, memory) for memory in memories_of(self.conditions.memory))

    def first_batches(self, tokens: int) -> tuple[Tensor, ...]:
        """The first batches, as many as have so many tokens together; all if they have fewer."""
        found: list[Tensor] = []
        for batch in self.batches:
            if sum(other.numel() for other in found) < tokens:
                found.append(batch)
        return tuple(found)

    @property
    def embedding_batches(self) -> tuple[Tensor, ...]:
        """The batches that an untied embedding is measured on."""
        return self.first_batches(EMBEDDING_TOKENS)

    def _embedding_rows(self) -> list[Measurement]:
        """What was measured of it.

        Raises:
            MeasurementError: nothing was.
        """
        cells = [
            (name, fmt.name, memory, batch, "measured")
            for name, fmt, memory in self.embedding_entries()
            for batch in range(len(self.embedding_batches))
        ]
        missing = [cell for cell in cells if cell not in self.kept.measurements]
        if missing:
            msg = f"{missing[0][0]} was not measured in {missing[0][1]}; run the same analyze command again to complete"
            raise MeasurementError(msg)
        return [self.kept.measurements[cell] for cell in cells]

    def check_entry(self, name: str, fmt: QuantFormat, memory: Memory, source: Source) -> None:
        """Accept a loss of exactly 0 over all batches only where it is a fact.

        Raises:
            MeasurementError: a tensor loses nothing, and the whole model says otherwise.
        """
        rows = self.rows((name, fmt.name, memory), source)
        spec = self.loaded.card.tensor(name)
        # a rounded router may make the same choices, and an expert that no token reaches has no output
        idle = spec.role is Role.ROUTER or (spec.role is Role.EXPERT and _unreached(rows))
        if any(row.kl_nats for row in rows) or idle or self.changes_nothing(name, fmt, memory):
            return
        if not self.silent.loses_nothing(name, fmt, memory):
            msg = (
                f"{name} in {fmt}, memory {memory}, loses exactly 0 nats over all batches, yet it changes the logits "
                "of the whole model; the measurement is broken. Try --device cpu, and report it"
            )
            raise MeasurementError(msg)

    def table(self, mode: Mode, rows: Sequence[Measurement], notes: Sequence[Note] = ()) -> SensitivityTable:
        """The finished table.

        Raises:
            MeasurementError: rows are missing or have impossible values.
        """
        records = [self.kept.references[batch] for batch in sorted(self.kept.references)]
        nll = math.fsum(r.labels * r.nll_nats for r in records) / sum(r.labels for r in records)
        conditions = replace(self.conditions, mode=mode)
        about_rows = (*_notes_on_experts(self.loaded.card, rows), *_notes_on_silence(rows), *_notes_on_half(rows))
        notes = (*self.menu_notes, *notes, *about_rows)
        rows = (*self._embedding_rows(), *rows)
        table = SensitivityTable(self.loaded.card, conditions, nll, notes, rows)
        table.check_complete()
        return table


def _unreached(rows: Sequence[Measurement]) -> bool:
    """Whether a tensor's own output never changed."""
    return all(row.sqnr_db == math.inf for row in rows)


def _notes_on_experts(card: ModelCard, rows: Sequence[Measurement]) -> Iterator[Note]:
    experts = {spec.name: f"{spec.layer}.{spec.expert}" for spec in card.tensors if spec.expert is not None}
    seen: dict[str, list[Measurement]] = {name: [] for name in experts}
    for row in rows:
        if row.tensor in seen and not QuantFormat.parse(row.format).is_float:
            seen[row.tensor].append(row)
    missed = list(dict.fromkeys(experts[name] for name, own in seen.items() if own and _unreached(own)))
    if missed:
        named, others = few(missed, 5)
        yield note("experts-unreached", count=len(missed), experts=named, others=others)


def _notes_on_silence(rows: Sequence[Measurement]) -> Iterator[Note]:
    """Name tensors that lose nothing in any integer format; experts have a note of their own."""
    loud: dict[str, bool] = {}
    for row in rows:
        if not QuantFormat.parse(row.format).is_float:
            loud[row.tensor] = loud.get(row.tensor, False) or row.kl_nats > 0
    silent = [name for name, heard in loud.items() if not heard and ".experts." not in name]
    if silent:
        named, others = few(silent, 5)
        yield note("tensors-without-loss", count=len(silent), tensors=named, others=others)


def _notes_on_half(rows: Sequence[Measurement]) -> Iterator[Note]:
    """Name what fp16 does not hold, which MNN computes in on ARM under ``precision: low``."""
    layers = {row.tensor: peak for row in rows if (peak := row.layer_peak or 0.0) > LARGEST_HALF}
    tokens = {row.tensor: peak for row in rows if (peak := row.least_peak or math.inf) < LEAST_HALF_PEAK}
    if layers:
        named, others = few(list(layers), 5)
        yield note("half-overflows", peak=max(layers.values()), most=LARGEST_HALF, tensors=named, others=others)
    if tokens:
        named, others = few(list(tokens), 5)
        yield note("half-loses-tokens", peak=min(tokens.values()), least=LEAST_HALF_PEAK, tensors=named, others=others)


@contextmanager
def open_analysis(
    loaded: LoadedModel,
    calibration: CalibrationSet,
    formats: Sequence[QuantFormat],
    memory: Memory,
    *,
    batch_size: int = 4,
    draws: int = 1,
    dynamic_option: DynamicOption = 0,
    rounder: Rounder | None = None,
    drawn: int | None = None,
    also: Mapping[str, str] | None = None,
    journal: Path | None = None,
) -> Iterator[Analysis]:
    """Start an analysis, or resume the one in a journal; all modes share a journal.

    Args:
        loaded: the model.
        calibration: the tokens.
        formats: formats to measure; blocks are resolved for each tensor.
        memory: MNN's memory setting whose arithmetic is emulated.
        batch_size: sequences per pass.
        draws: how often labels are sampled for each sequence, where gradients are used.
        dynamic_option: MNN's setting that int8 activations are rounded with.
        rounder: chooses the integers; None rounds to nearest.
        drawn: output features of every tensor that losses are estimated from; None for all.
        also: what else losses depend on, by readable names.
        journal: file that measurements are appended to; a run with the journal of an interrupted one resumes it.

    Raises:
        InputError: a tensor allows none of the formats.
        StaleArtifactError: the journal was made from other inputs.
    """
    menu, notes = resolve_menu(loaded.card, formats, dynamic_option)
    notes += () if rounder is None else rounder.notes
    conditions = Conditions(
        memory=memory,
        formats=tuple(fmt.name for fmt in formats),
        samples=calibration.samples,
        seq_len=calibration.seq_len,
        batch_size=batch_size,
        calibration=calibration.source,
        calibration_sha256=calibration.sha256,
        seed=calibration.seed,
        draws=draws,
        rounding="rtn" if rounder is None else rounder.rounding,
        dynamic_option=dynamic_option,
        drawn=drawn,
    )
    fingerprint = {
        "model": loaded.card.sha256,
        "calibration": calibration.sha256,
        "formats": conditions.formats,
        "memory": memory,
        "samples": conditions.samples,
        "seq_len": conditions.seq_len,
        "batch_size": batch_size,
        "draws": draws,
        "dynamic option": dynamic_option,
        "rounding": conditions.rounding,
        "rounding fitted to": calibration.fit_sha256 if conditions.rounding != "rtn" else "nothing",
        "device": loaded.device.type,
        "dtype": str(loaded.dtype).removeprefix("torch."),
        "table schema": _ROWS_SCHEMA,
    }
    if drawn is not None:
        fingerprint["output features drawn"] = drawn
    fingerprint |= also or {}
    batches = torch.from_numpy(calibration.tokens).split(batch_size)
    opened = nullcontext(Memo()) if journal is None else Journal(journal, fingerprint)
    with opened as kept:
        yield Analysis(loaded, menu, notes, conditions, batches, StoredWeights(loaded, rounder), kept)
