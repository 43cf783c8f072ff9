"""Measured losses: every format of every tensor is run through the model, one at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from qplan.calibration.token_set import CalibrationSet
from qplan.errors import MeasurementError
from qplan.formats import QuantFormat
from qplan.model.load import LoadedModel
from qplan.sensitivity.journal import Cell, Journal, ReferenceRecord, cell_of
from qplan.sensitivity.menu import Menu, resolve_menu
from qplan.sensitivity.metrics import TokenStats, compare, sqnr_db
from qplan.sensitivity.replay import LayerPass, ReferencePass
from qplan.sensitivity.table import SCHEMA, Conditions, Measurement, Memory, SensitivityTable, memories_of
from qplan.sensitivity.variants import StoredWeights, apply_formats
from qplan.tensors import TensorSpec

Progress = Callable[[int, int], None]
"""Told how many measurements are done, of how many."""


@dataclass(frozen=True)
class _Work:
    """What every step of one analysis needs."""

    loaded: LoadedModel
    menu: Menu
    memory: Memory
    stored: StoredWeights
    journal: Journal | _Memo
    progress: Progress | None
    total: int


@dataclass(frozen=True)
class _Job:
    """One measurement to make."""

    spec: TensorSpec
    format: QuantFormat
    memory: Memory
    batch: int


class _Memo:
    """Stands in for a journal where nothing is to be kept."""

    def __init__(self) -> None:
        self.measurements: dict[Cell, Measurement] = {}
        self.references: dict[int, ReferenceRecord] = {}

    def add(self, measurement: Measurement) -> None:
        self.measurements[cell_of(measurement)] = measurement

    def add_reference(self, record: ReferenceRecord) -> None:
        self.references[record.batch] = record


def analyze(
    loaded: LoadedModel,
    calibration: CalibrationSet,
    formats: Sequence[QuantFormat],
    memory: Memory = "low",
    *,
    batch_size: int = 4,
    journal: Path | None = None,
    progress: Progress | None = None,
) -> SensitivityTable:
    """Measure the loss of every format of every linear tensor, everything else in FP32.

    Batch by batch: one reference pass; then, for each tensor and format, only what comes after the tensor is computed.
    The unchanged model is scored through the same path in every layer and must lose exactly nothing.

    Args:
        loaded: the model.
        calibration: the tokens.
        formats: to measure; blocks are resolved for each tensor.
        memory: MNN's memory setting whose arithmetic is emulated.
        batch_size: sequences per pass.
        journal: where measurements are kept as they are made; an interrupted run with the same journal goes on.
        progress: called after each measurement.

    Raises:
        MeasurementError: a measurement that is missing, not finite or impossible.
        StaleArtifactError: the journal was made from other inputs.
    """
    menu, notes = resolve_menu(loaded.card, formats)
    conditions = Conditions(
        memory=memory,
        formats=tuple(fmt.name for fmt in formats),
        samples=calibration.samples,
        seq_len=calibration.seq_len,
        batch_size=batch_size,
        calibration=calibration.source,
        calibration_sha256=calibration.sha256,
        seed=calibration.seed,
    )
    batches = list(torch.from_numpy(calibration.tokens).split(batch_size))
    fingerprint = {
        "model": loaded.card.sha256,
        "calibration": calibration.sha256,
        "formats": conditions.formats,
        "memory": memory,
        "samples": conditions.samples,
        "seq_len": conditions.seq_len,
        "batch_size": batch_size,
        "device": loaded.device.type,
        "table schema": SCHEMA,
    }
    opened = nullcontext(_Memo()) if journal is None else Journal(journal, fingerprint)
    with opened as kept:
        total = len(batches) * len(memories_of(memory)) * sum(len(formats) for formats in menu.values())
        work = _Work(loaded, menu, memory, StoredWeights(loaded), kept, progress, total)
        for batch, tokens in enumerate(batches):
            _measure_batch(work, batch, tokens)
        _check_losses(work)
        rows = [kept.measurements[n, f.name, m, batch] for n, f, m in _cells(work) for batch in range(len(batches))]
        table = SensitivityTable(loaded.card, conditions, _reference_nll(kept.references), notes, tuple(rows))
    table.check_complete()
    return table


def _measure_batch(work: _Work, batch: int, tokens: Tensor) -> None:
    done = work.journal.measurements
    if work.progress is not None:
        work.progress(len(done), work.total)
    pending = {
        spec.name: [
            _Job(spec, fmt, memory, batch)
            for name, fmt, memory in _cells(work)
            if name == spec.name and (name, fmt.name, memory, batch) not in done
        ]
        for spec in work.loaded.card.tensors
    }
    if not any(pending.values()) and batch in work.journal.references:
        return
    base = ReferencePass.run(work.loaded, tokens)
    if batch not in work.journal.references:
        nll = base.reference.nll
        work.journal.add_reference(ReferenceRecord(batch, len(nll), float(nll.mean())))
    for layer in (*range(len(work.loaded.layers)), None):
        specs = [spec for spec in work.loaded.card.tensors if spec.layer == layer and pending[spec.name]]
        if not specs:
            continue
        here = _control(base, work.loaded, layer)
        for spec in specs:
            for job in pending[spec.name]:
                _measure(work, here, job)


def _control(base: ReferencePass, loaded: LoadedModel, layer: int | None) -> LayerPass:
    """Score the unchanged model through the path of a layer's variants: it must lose exactly nothing."""
    names = [spec.name for spec in loaded.card.tensors if spec.layer == layer]
    linears = list(dict.fromkeys(loaded.linear(name) for name in names))
    here = LayerPass.run(base, len(loaded.layers) if layer is None else layer, linears)
    for name in names:
        if loaded.linear(name) not in here.order:
            msg = f"{name} was not reached by any calibration token; the model does not use it as its type promises"
            raise MeasurementError(msg)
    loss = compare(base.reference, here.logits).kl_nats
    where = "the head" if layer is None else f"layer {layer}"
    if loss != 0:
        msg = (
            f"the unchanged model loses {loss:g} nats when it is run from {where} on, expected exactly 0; "
            "its arithmetic is not repeatable here. Try --device cpu"
        )
        raise MeasurementError(msg)
    return here


def _measure(work: _Work, here: LayerPass, job: _Job) -> None:
    linear = work.loaded.linear(job.spec.name)
    rows = work.loaded.sites[job.spec.name].rows
    if _changes_nothing(work, job.spec.name, job.format, job.memory):
        # what would be computed is the control, which was
        logits, output = here.logits, here.output_of(linear)
    else:
        logits, output = _run(work, here, job)
    try:
        stats = compare(here.base.reference, logits)
    except MeasurementError as error:
        msg = f"{job.spec.name} in {job.format}, memory {job.memory}, batch {job.batch}: {error}"
        raise MeasurementError(msg) from error
    sqnr = sqnr_db(here.output_of(linear)[..., rows], output[..., rows])
    work.journal.add(_measurement(job, stats, sqnr))
    if work.progress is not None:
        work.progress(len(work.journal.measurements), work.total)


def _run(work: _Work, here: LayerPass, job: _Job) -> tuple[Tensor, Tensor]:
    linear = work.loaded.linear(job.spec.name)
    with torch.no_grad(), apply_formats(work.loaded, {job.spec.name: job.format}, job.memory, stored=work.stored):
        if job.spec.tied:
            # the embedding changes too: everything is computed; the head's own error is that on the reference input
            return here.base.logits(0), linear(here.input_of(linear))
        return here.replay(linear)


def _changes_nothing(work: _Work, name: str, fmt: QuantFormat, memory: Memory) -> bool:
    """Whether storage keeps every weight to the bit and activations stay floats."""
    return (fmt.is_float or memory == "normal") and work.stored.unchanged(name, fmt)


def _measurement(job: _Job, stats: TokenStats, sqnr: float) -> Measurement:
    return Measurement(
        tensor=job.spec.name,
        format=job.format.name,
        memory=job.memory,
        batch=job.batch,
        tokens=stats.tokens,
        kl_nats=stats.kl_nats,
        kl_p99_nats=stats.kl_p99_nats,
        top1=stats.top1,
        nll_nats=stats.nll_nats,
        sqnr_db=sqnr,
    )


def _check_losses(work: _Work) -> None:
    """A loss of exactly 0 over all batches is believed only where nothing was changed."""
    losses: dict[tuple[str, str, str], float] = {}
    for (name, fmt_name, memory, _), measurement in work.journal.measurements.items():
        losses[name, fmt_name, memory] = losses.get((name, fmt_name, memory), 0.0) + measurement.kl_nats
    for name, fmt, memory in _cells(work):
        if losses[name, fmt.name, memory] == 0 and not _changes_nothing(work, name, fmt, memory):
            msg = (
                f"{name} in {fmt}, memory {memory}, changes its values but loses exactly 0 nats over all batches; "
                "the tensor has no effect on the logits or the measurement is broken"
            )
            raise MeasurementError(msg)


def _cells(work: _Work) -> Iterator[tuple[str, QuantFormat, Memory]]:
    """Tensor name, format and memory of everything that is measured, in the order of the table."""
    for name, formats in work.menu.items():
        for fmt in formats:
            for memory in memories_of(work.memory):
                yield name, fmt, memory


def _reference_nll(references: dict[int, ReferenceRecord]) -> float:
    records = [references[batch] for batch in sorted(references)]
    return math.fsum(r.labels * r.nll_nats for r in records) / sum(r.labels for r in records)
