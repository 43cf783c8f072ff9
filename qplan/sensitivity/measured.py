"""Measured losses: the model is run with every format of every tensor, one tensor at a time."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch

from qplan.errors import MeasurementError
from qplan.model.load import LoadedModel
from qplan.model.reopened import weight_bytes
from qplan.run.journal import Memo, ReferenceRecord
from qplan.run.measurement import Measurement
from qplan.sensitivity.analysis import Analysis, Entry
from qplan.sensitivity.measure_layer import TOKENS_TOGETHER, Job, Work, control_pass, measure_tensor
from qplan.sensitivity.replay import ReferencePass
from qplan.sensitivity.stored_weights import StoredWeights
from qplan.settings import Progress
from qplan.spread.work import Task, Workers

_HIDDEN_COPIES, _LOGITS_COPIES = 16, 6
"""Copies of hidden states and of logits in a pass beyond what is kept, for an estimate of memory from above."""


def measure(
    analysis: Analysis,
    only: Collection[Entry] | None = None,
    *,
    workers: Workers | None = None,
    progress: Progress | None = None,
) -> None:
    """Make all measurements that do not exist yet.

    Args:
        analysis: the entries to measure, and where measurements are kept.
        only: entries to measure; all by default.
        workers: of a cluster, who measure instead of this process, a batch and layer at a time.
        progress: called after each measurement.

    Raises:
        MeasurementError: a measurement is not finite or is impossible.
    """
    if analysis.loaded.dtype != torch.float32:
        msg = (
            "losses can be measured in float32 only: half precision's own rounding loses 1e-4 nats, some hundred times "
            "what a tensor loses in int8 (reports/sensitivity/). Use --dtype float32, or --mode gradient"
        )
        raise MeasurementError(msg)
    entries = [entry for entry in analysis.entries() if only is None or (entry[0], entry[1].name, entry[2]) in only]
    jobs = [Job(name, fmt, m, batch) for batch in range(len(analysis.batches)) for name, fmt, m in entries]
    work = Work(analysis, tuple(jobs), progress)
    work.done = sum(map(work.knows, jobs))
    if workers is None:
        for batch in range(len(analysis.batches)):
            _measure_batch(work, batch)
    else:
        _measured_by(workers, work)
    for name, fmt, memory in entries:
        analysis.check_entry(name, fmt, memory, "measured")


def _measure_batch(work: Work, batch: int) -> None:
    work.tell()
    analysis, pending = work.analysis, work.of_batch(batch)
    if not pending and batch in analysis.kept.references:
        return
    loaded = analysis.loaded
    base = ReferencePass.run(loaded, analysis.batches[batch])
    if batch not in analysis.kept.references:
        analysis.kept.add_reference(_record(batch, base))
    for layer, names in _layers_of(loaded, pending):
        here, unchanged = control_pass(base, loaded, layer)
        for name in names:
            measure_tensor(work, here, unchanged, pending[name])


def _record(batch: int, base: ReferencePass) -> ReferenceRecord:
    nll = base.reference.nll
    return ReferenceRecord(batch, len(nll), float(nll.mean()))


def _layers_of(loaded: LoadedModel, pending: Collection[str]) -> Iterator[tuple[int | None, list[str]]]:
    """Layers with tensors that are pending, then the head (None), with the names of these tensors."""
    for layer in (*range(len(loaded.layers)), None):
        names = [spec.name for spec in loaded.card.tensors if spec.layer == layer and spec.name in pending]
        if names:
            yield layer, names


@dataclass(frozen=True)
class _Part:
    """The measurements of one layer on one batch."""

    batch: int
    layer: int | None
    """None for the head."""
    jobs: Mapping[str, Sequence[Job]]
    """By tensor; those that are known too, since all are batched together."""
    known: tuple[Measurement, ...]


@dataclass(frozen=True)
class MeasureLayers:
    """Measures the tensors of a layer on a batch in another process, which writes nothing."""

    analysis: Analysis
    threads: int = field(default_factory=torch.get_num_threads)

    @property
    def memory_bytes(self) -> int:
        """RAM of a process: model, stored weights, a pass's hidden states and logits."""
        loaded, batch = self.analysis.loaded, self.analysis.batches[0]
        stored = min(
            self.analysis.stored.limit_bytes, 4 * loaded.card.parameters * len(self.analysis.conditions.formats)
        )
        hidden = 4 * batch.numel() * loaded.head.in_features * (len(loaded.layers) + _HIDDEN_COPIES)
        logits = 4 * max(batch.numel(), TOKENS_TOGETHER) * loaded.card.vocabulary * _LOGITS_COPIES
        return weight_bytes(loaded) + stored + hidden + logits

    def open(self) -> Callable[[_Part], tuple[ReferenceRecord, list[Measurement]]]:
        """Measures one part; returns what is new, in order."""
        given, bases = self.analysis, dict[int, ReferencePass]()

        def run(part: _Part) -> tuple[ReferenceRecord, list[Measurement]]:
            analysis = replace(given, kept=Memo())
            for measurement in part.known:
                analysis.kept.add(measurement)
            if part.batch not in bases:
                bases.clear()
                bases[part.batch] = ReferencePass.run(analysis.loaded, analysis.batches[part.batch])
            base = bases[part.batch]
            work = Work(analysis, tuple(job for jobs in part.jobs.values() for job in jobs), None)
            here, unchanged = control_pass(base, analysis.loaded, part.layer)
            for jobs in part.jobs.values():
                measure_tensor(work, here, unchanged, jobs)
            return _record(part.batch, base), list(analysis.kept.measurements.values())[len(part.known) :]

        return run


def _measured_by(workers: Workers, work: Work) -> None:
    """Let workers measure, and keep what they find."""
    work.tell()
    analysis, parts = work.analysis, list[_Part]()
    for batch in range(len(analysis.batches)):
        pending = work.of_batch(batch)
        for layer, names in _layers_of(analysis.loaded, pending):
            jobs = {name: pending[name] for name in names}
            cells = [job.cell for same in jobs.values() for job in same if work.knows(job)]
            parts.append(_Part(batch, layer, jobs, tuple(analysis.kept.measurements[cell] for cell in cells)))
    rounder = analysis.stored.rounder
    stored = StoredWeights(analysis.loaded, None if rounder is None else replace(rounder, workers=None))
    far = MeasureLayers(replace(analysis, stored=stored, kept=Memo()))
    tasks = [Task(part, ", ".join(part.jobs)) for part in parts]
    for index, (record, found) in workers.run(far, tasks):
        if parts[index].batch not in analysis.kept.references:
            analysis.kept.add_reference(record)
        for measurement in found:
            analysis.kept.add(measurement)
        work.tell(len(found))
    for batch in range(len(analysis.batches)):
        _measure_batch(work, batch)  # the reference, where a damaged journal lost nothing else
