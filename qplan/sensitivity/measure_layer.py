"""Measures the tensors of one layer on one batch, given a pass of the unchanged model."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from qplan.errors import MeasurementError
from qplan.formats import QuantFormat
from qplan.model.load import LoadedModel
from qplan.run.journal import Cell
from qplan.run.measurement import Measurement
from qplan.sensitivity.analysis import Analysis
from qplan.sensitivity.metrics import OutputError, OutputScale, TokenStats, metrics_of
from qplan.sensitivity.replay import LayerPass, ReferencePass
from qplan.sensitivity.variants import apply_formats
from qplan.settings import Memory, Progress

TOKENS_TOGETHER = 1024
"""Tokens, summed over formats of one tensor, that pass through the rest of the model together on a CPU."""

_LOGITS_TOGETHER = 1 << 28
"""Logits, summed over formats of one tensor, that exist at a time on other devices: 1 GiB of float32."""


@dataclass(frozen=True)
class Job:
    """One measurement to make."""

    tensor: str
    format: QuantFormat
    memory: Memory
    batch: int

    @property
    def cell(self) -> Cell:
        """Its key in the journal."""
        return self.tensor, self.format.name, self.memory, self.batch, "measured"


@dataclass
class Work:
    """The measurements that one call makes."""

    analysis: Analysis
    jobs: tuple[Job, ...]
    progress: Progress | None
    done: int = 0

    def of_batch(self, batch: int) -> dict[str, list[Job]]:
        """Measurements of a batch by tensor, without tensors that are fully measured."""
        jobs: dict[str, list[Job]] = {}
        for job in self.jobs:
            if job.batch == batch:
                jobs.setdefault(job.tensor, []).append(job)
        return {name: those for name, those in jobs.items() if not all(map(self.knows, those))}

    def knows(self, job: Job) -> bool:
        """Whether a measurement exists already."""
        return job.cell in self.analysis.kept.measurements

    def tell(self, more: int = 0) -> None:
        """Report progress."""
        self.done += more
        if self.progress is not None:
            self.progress(self.done, len(self.jobs))


def control_pass(base: ReferencePass, loaded: LoadedModel, layer: int | None) -> tuple[LayerPass, TokenStats]:
    """Run the unchanged model the way a layer's variants run: it must lose exactly 0.

    Raises:
        MeasurementError: it loses something, or does not reach a tensor.
    """
    names = [spec.name for spec in loaded.card.tensors if spec.layer == layer]
    linears = list(dict.fromkeys(loaded.linear(name) for name in names))
    here = LayerPass.run(base, len(loaded.layers) if layer is None else layer, linears)
    for name in names:
        if loaded.linear(name) not in here.calls:
            msg = f"{name} was not reached by any calibration token; the model does not use it as its type promises"
            raise MeasurementError(msg)
    stats = here.compare(here.end)
    where = "the head" if layer is None else f"layer {layer}"
    if stats.kl_nats != 0:
        msg = (
            f"the unchanged model loses {stats.kl_nats:g} nats when it is run from {where} on, expected exactly 0; "
            "its arithmetic is not repeatable here. Try --device cpu"
        )
        raise MeasurementError(msg)
    return here, stats


def measure_tensor(work: Work, here: LayerPass, unchanged: TokenStats, jobs: Sequence[Job]) -> None:
    """Measure one tensor in some formats, as many together as suits the device."""
    analysis, name = work.analysis, jobs[0].tensor
    spec, site = analysis.loaded.card.tensor(name), analysis.loaded.sites[name]
    linear = analysis.loaded.linear(name)
    scale = OutputScale(here.output_of(linear)[..., site.rows])
    twins: list[Job] = []
    changed: list[Job] = []
    for job in jobs:
        # float weights compute the same under every memory setting
        if job.format.is_float and any(other.format == job.format for other in changed):
            twins.append(job)
        elif analysis.changes_nothing(name, job.format, job.memory):
            # the result would be the control, which was run already
            _keep(work, job, unchanged, scale.error(here.output_of(linear)[..., site.rows]))
        else:
            changed.append(job)
    # jobs are batched the same way even if some are done, so that a resumed run gives the same bits
    together = 1 if spec.tied else _most_together(here.base.reference.logits)
    for start in range(0, len(changed), together):
        some = changed[start : start + together]
        if all(map(work.knows, some)):
            continue
        outputs = [_output(analysis, here, job) for job in some]
        for job, stats, output in zip(some, _stats(analysis, here, some, outputs, unchanged), outputs, strict=True):
            _keep(work, job, stats, scale.error(output[..., site.rows]))
    for job in twins:
        if not work.knows(job):
            twin = next(other for other in changed if other.format == job.format)
            analysis.kept.add(replace(analysis.kept.measurements[twin.cell], memory=job.memory))
            work.tell(1)


def _stats(
    analysis: Analysis, here: LayerPass, jobs: Sequence[Job], outputs: Sequence[Tensor], unchanged: TokenStats
) -> list[TokenStats]:
    """What a tensor loses in each format, given its linear's outputs."""
    linear = analysis.loaded.linear(jobs[0].tensor)
    if analysis.loaded.card.tensor(jobs[0].tensor).tied:
        ends: Sequence[Tensor] = (_logits_of_tied(analysis, here, jobs[0]),)
    elif all(torch.equal(output, here.output_of(linear)) for output in outputs):
        return [unchanged] * len(jobs)  # an expert that no token reaches: the rest is the control
    else:
        ends = here.replay(linear, outputs)
    return [_compare(here, job, end) for job, end in zip(jobs, ends, strict=True)]


def _most_together(logits: Tensor) -> int:
    """How many formats pass through the rest of the model together, each with logits ``[tokens, vocabulary]``.

    On a CPU, rows beyond what keeps its units busy only wait for memory. Elsewhere the amount of memory is the limit.
    """
    if logits.device.type == "cpu":
        return max(1, TOKENS_TOGETHER // len(logits))
    return max(1, _LOGITS_TOGETHER // logits.numel())


def _output(analysis: Analysis, here: LayerPass, job: Job) -> Tensor:
    """The output of a tensor's linear in a format, given its reference input."""
    linear = analysis.loaded.linear(job.tensor)
    with torch.no_grad(), _applied(analysis, job):
        output: Tensor = linear(here.input_of(linear))
    return output


def _logits_of_tied(analysis: Analysis, here: LayerPass, job: Job) -> Tensor:
    """Logits with a tied head changed; the embedding changes too, so the whole model runs."""
    with _applied(analysis, job):
        return here.base.logits(0)


def _applied(analysis: Analysis, job: Job) -> AbstractContextManager[None]:
    formats = {job.tensor: job.format}
    return apply_formats(analysis.loaded, formats, job.memory, analysis.activations, stored=analysis.stored)


def _compare(here: LayerPass, job: Job, end: Tensor) -> TokenStats:
    try:
        return here.compare(end)
    except MeasurementError as error:
        msg = f"{job.tensor} in {job.format}, memory {job.memory}, batch {job.batch}: {error}"
        raise MeasurementError(msg) from error


def _keep(work: Work, job: Job, stats: TokenStats, output: OutputError) -> None:
    if work.knows(job):
        return
    place = (job.tensor, job.format.name, job.memory, job.batch, stats.tokens)
    work.analysis.kept.add(Measurement(*place, **metrics_of(stats, output)))
    work.tell(1)
