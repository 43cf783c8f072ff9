"""Measured losses: every format of every tensor is run through the model, one at a time."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from qplan.calibration.token_set import CalibrationSet
from qplan.errors import MeasurementError
from qplan.formats import QuantFormat
from qplan.model.load import LoadedModel
from qplan.sensitivity.analysis import Analysis, Entry, Progress, open_analysis
from qplan.sensitivity.journal import Cell, ReferenceRecord
from qplan.sensitivity.measurement import Measurement, Memory, memories_of
from qplan.sensitivity.metrics import TokenStats, compare, sqnr_db
from qplan.sensitivity.replay import LayerPass, ReferencePass
from qplan.sensitivity.table import SensitivityTable
from qplan.sensitivity.variants import apply_formats


@dataclass(frozen=True)
class _Job:
    """One measurement to make."""

    tensor: str
    format: QuantFormat
    memory: Memory
    batch: int

    @property
    def cell(self) -> Cell:
        """Where it is kept."""
        return self.tensor, self.format.name, self.memory, self.batch, "measured"


@dataclass
class _Work:
    """The measurements of one call."""

    analysis: Analysis
    jobs: tuple[_Job, ...]
    progress: Progress | None
    done: int = 0

    def pending(self, batch: int) -> dict[str, list[_Job]]:
        """What is not measured yet in a batch, by tensor."""
        jobs: dict[str, list[_Job]] = {}
        for job in self.jobs:
            if job.batch == batch and job.cell not in self.analysis.kept.measurements:
                jobs.setdefault(job.tensor, []).append(job)
        return jobs

    def tell(self, more: int = 0) -> None:
        """Report progress."""
        self.done += more
        if self.progress is not None:
            self.progress(self.done, len(self.jobs))


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
    opened = open_analysis(loaded, calibration, formats, memory, batch_size=batch_size, journal=journal)
    with opened as analysis:
        measure(analysis, progress=progress)
        rows = [row for n, f, m in analysis.entries() for row in analysis.rows((n, f.name, m), "measured")]
        return analysis.table("measured", rows)


def measure(analysis: Analysis, only: Collection[Entry] | None = None, *, progress: Progress | None = None) -> None:
    """Measure what is not measured yet.

    Args:
        analysis: what to measure, and where it is kept.
        only: entries to measure; all by default.
        progress: called after each measurement.

    Raises:
        MeasurementError: a measurement that is not finite or impossible.
    """
    entries = [entry for entry in analysis.entries() if only is None or (entry[0], entry[1].name, entry[2]) in only]
    jobs = [_Job(name, fmt, m, batch) for batch in range(len(analysis.batches)) for name, fmt, m in entries]
    work = _Work(analysis, tuple(jobs), progress, sum(job.cell in analysis.kept.measurements for job in jobs))
    for batch in range(len(analysis.batches)):
        _measure_batch(work, batch)
    for name, fmt, memory in entries:
        analysis.check_entry(name, fmt, memory, "measured")


def _measure_batch(work: _Work, batch: int) -> None:
    work.tell()
    analysis, pending = work.analysis, work.pending(batch)
    if not pending and batch in analysis.kept.references:
        return
    loaded = analysis.loaded
    base = ReferencePass.run(loaded, analysis.batches[batch])
    if batch not in analysis.kept.references:
        nll = base.reference.nll
        analysis.kept.add_reference(ReferenceRecord(batch, len(nll), float(nll.mean())))
    for layer in (*range(len(loaded.layers)), None):
        names = [spec.name for spec in loaded.card.tensors if spec.layer == layer and spec.name in pending]
        if not names:
            continue
        here = _control(base, loaded, layer)
        for name in names:
            for job in pending[name]:
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
    analysis = work.analysis
    twin = _twin(analysis, job)
    if twin is not None:
        analysis.kept.add(replace(twin, memory=job.memory))
        work.tell(1)
        return
    linear = analysis.loaded.linear(job.tensor)
    rows = analysis.loaded.sites[job.tensor].rows
    if analysis.changes_nothing(job.tensor, job.format, job.memory):
        # what would be computed is the control, which was
        logits, output = here.logits, here.output_of(linear)
    else:
        logits, output = _run(analysis, here, job)
    try:
        stats = compare(here.base.reference, logits)
    except MeasurementError as error:
        msg = f"{job.tensor} in {job.format}, memory {job.memory}, batch {job.batch}: {error}"
        raise MeasurementError(msg) from error
    sqnr = sqnr_db(here.output_of(linear)[..., rows], output[..., rows])
    analysis.kept.add(_measurement(job, stats, sqnr))
    work.tell(1)


def _twin(analysis: Analysis, job: _Job) -> Measurement | None:
    """The same format under another memory setting, which computes the same where weights are floats."""
    if not job.format.is_float:
        return None
    known = analysis.kept.measurements
    cells = (replace(job, memory=memory).cell for memory in memories_of(analysis.conditions.memory))
    return next((known[cell] for cell in cells if cell in known), None)


def _run(analysis: Analysis, here: LayerPass, job: _Job) -> tuple[Tensor, Tensor]:
    loaded = analysis.loaded
    linear = loaded.linear(job.tensor)
    formats = {job.tensor: job.format}
    applied = apply_formats(loaded, formats, job.memory, analysis.activations, stored=analysis.stored)
    with torch.no_grad(), applied:
        if loaded.card.tensor(job.tensor).tied:
            # the embedding changes too: everything is computed; the head's own error is that on the reference input
            return here.base.logits(0), linear(here.input_of(linear))
        return here.replay(linear)


def _measurement(job: _Job, stats: TokenStats, sqnr: float) -> Measurement:
    return Measurement(
        tensor=job.tensor,
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
