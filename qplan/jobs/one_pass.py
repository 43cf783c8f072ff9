"""One pass there and one back give moments, folds and losses; see `qplan.folding.one_pass`.

That is the quick effort. The default one then measures what plans hang on: `qplan.jobs.pivotal`.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from qplan.artifact import is_there, remove_folder, sha256_json, versions
from qplan.folding.analyzed import load_folded
from qplan.folding.decide import fold_record, store_folded
from qplan.folding.one_pass import OnePass, label_seeds, model_losses
from qplan.jobs.left_behind import can_go_on
from qplan.jobs.options import AnalyzeOptions
from qplan.jobs.pivotal import Pivotal
from qplan.jobs.stages import Stages
from qplan.model.boundaries import Boundaries
from qplan.model.half_products import half_products_pay
from qplan.model.layerwise import WayBack, WayThere, with_layer_read
from qplan.model.load import LoadedModel
from qplan.notes import Note
from qplan.rounding.moments import Moments, gather_on_the_way
from qplan.rounding.rounder import Rounder
from qplan.rounding.run_rounder import run_rounder
from qplan.roundings import needs_tokens
from qplan.run.calibration import CalibrationSet
from qplan.run.fold import FoldRecord, inputs_of
from qplan.run.fold_draft import FoldDraft
from qplan.run.folder import RunFolder
from qplan.run.moments import Part, moments_folder, write_matrix
from qplan.run.table import SensitivityTable
from qplan.sensitivity.analysis import Analysis, open_analysis
from qplan.sensitivity.embedding import measure_embedding
from qplan.sensitivity.seen import Seen
from qplan.sensitivity.stored_weights import StoredWeights
from qplan.settings import Progress, Say
from qplan.spread.work import Workers

DRAWN = 64
"""Output features of every tensor that losses are estimated from. A loss is then known to 8 % (standard deviation of
the logarithm on a trained model of 8 million parameters), where the second order itself leaves 12 % (`FORM_ERROR`)."""

EMBEDDING_TOLD = "whole models with the untied embedding in each format"

WITNESS_TOKENS = 4096
"""Most tokens of the calibration's `fit` windows that scales are fitted to."""


@dataclass(frozen=True)
class _Job:
    options: AnalyzeOptions
    run: RunFolder
    loaded: LoadedModel
    calibration: CalibrationSet
    batch_size: int
    say: Say
    stages: Stages
    workers: Workers | None = None

    @property
    def fit(self) -> list[Tensor]:
        """Windows that rounding and scales are fitted to."""
        return list(torch.from_numpy(self.calibration.fit).split(self.batch_size))

    @property
    def witnesses(self) -> list[Tensor]:
        """Those of them that scales are fitted to, the first batches."""
        rows = WITNESS_TOKENS // self.calibration.seq_len
        return self.fit[: max(1, rows // self.batch_size)]

    @property
    def inputs(self) -> dict[str, str]:
        """What all that is found depends on."""
        return {
            "model": self.loaded.card.sha256,
            "fit": self.calibration.fit_sha256,
            "judge": self.calibration.sha256,
            "memory": self.options.memory,
            "dynamic_option": str(self.options.dynamic_option),
            "rounding": self.options.rounding,
            "drawn": str(DRAWN),
        }

    def draft(self) -> FoldDraft:
        """What was decided about folding before a kill."""
        return FoldDraft.open(self.run.fold_draft, self.inputs, self.say)

    @property
    def original(self) -> Path:
        """Where moments of the model as it was given are, until those of the one that is analyzed are written."""
        return self.run.rounding / f"original-{self.calibration.fit_sha256[:12]}"

    def forget(self) -> None:
        """Remove what only a killed analysis goes on from; one that is killed here does it again."""
        for folder in (self.run.between, self.original):
            remove_folder(folder)

    def between(self) -> Boundaries:
        """What lies between layers, as far as a killed analysis of the same came."""
        depends = self.inputs | {"batch": str(self.batch_size), "formats": " ".join(map(str, self.options.formats))}
        depends |= {"fold": self.options.fold} | versions()
        folder = self.run.between / sha256_json(depends)[:12]
        if not folder.is_dir():
            remove_folder(self.run.between)
        return Boundaries(folder, self.loaded.device)


def analyze_in_one_pass(
    options: AnalyzeOptions,
    run: RunFolder,
    loaded: LoadedModel,
    calibration: CalibrationSet,
    *,
    batch_size: int,
    say: Say,
    stages: Stages,
    workers: Workers | None = None,
) -> SensitivityTable:
    """Find folds and losses; the table is about the folded model if folding pays anywhere."""
    job = _Job(options, run, loaded, calibration, batch_size, say, stages, workers)
    opened = open_analysis(
        loaded,
        calibration,
        options.formats,
        options.memory,
        batch_size=batch_size,
        dynamic_option=options.dynamic_option,
        rounder=Rounder(loaded, options.rounding),
        drawn=DRAWN,
        also={
            "fold": options.fold,
            "scales fitted to": calibration.fit_sha256 if options.fold == "auto" else "nothing",
        },
        journal=run.journal,
    )
    with opened as begun:
        # whole tensors are rounded where a loss of exactly 0 must be proved, and need not be rounded well for that
        analysis = replace(begun, stored=StoredWeights(loaded))
        folded, notes = _left(job, analysis) or _found(job, analysis)
        job.forget()
        if folded is not loaded:
            loaded.release()
        about = replace(begun, loaded=folded, stored=StoredWeights(folded))
        if any(about.embedding_entries()):
            measure_embedding(about, stages.begin("embedding", EMBEDDING_TOLD))
        if options.effort == "default":
            rounder = run_rounder(
                run, folded, calibration, options.rounding, batch_size=batch_size, workers=job.workers
            )
            stored = StoredWeights(folded, rounder)
            progress = stages.begin("measuring", "measuring what plans hang on")
            pivotal = Pivotal(replace(about, stored=stored), rounder, say, progress, workers)
            table = pivotal.table()
        else:
            table = replace(analysis.table("gradient", analysis.all_rows("gradient")), model=folded.card)
    run.fold_draft.unlink(missing_ok=True)
    return replace(table, notes=(*table.notes, *notes))


def _found(job: _Job, analysis: Analysis) -> tuple[LoadedModel, tuple[Note, ...]]:
    """Go there and back: losses in the journal, the model that they are about, its moments, and notes."""
    found = _passes(job, analysis)
    for name, fmt, memory in analysis.entries():
        analysis.check_entry(name, fmt, memory, "gradient")
    folded, notes = _fold(job, found.one)
    if found.moments is not None:
        found.finish_moments(job, folded)
    return folded, notes


def _left(job: _Job, analysis: Analysis) -> tuple[LoadedModel, tuple[Note, ...]] | None:
    """What `_found` left before a kill, or another effort; None if it did not come to its end."""
    known = analysis.kept.measurements
    batches = range(len(analysis.batches))
    cells = ((n, f.name, memory, batch, "gradient") for n, f, memory in analysis.entries() for batch in batches)
    if not all(cell in known for cell in cells):
        return None
    folded: LoadedModel = job.loaded
    notes: tuple[Note, ...] = ()
    if job.options.fold == "auto":
        if not is_there(job.run.fold) or inputs_of(job.run.fold) != job.draft().inputs:
            return None
        record = FoldRecord.read(job.run.fold)
        notes = (record.note,)
        if record.folded_sha256 is not None:
            context, stream = folded.card.context, folded.streamed
            folded = load_folded(job.run, record, job.options.device, stream=stream).within(context)
    parts: dict[Part, str] = {"fit": job.calibration.fit_sha256, "judge": job.calibration.sha256}
    for part, sha256 in parts.items():
        inputs = {"model": folded.card.sha256, "tokens": sha256}
        if needs_tokens(job.options.rounding) and Moments.open(moments_folder(job.run, part, sha256), inputs) is None:
            return None
    return folded, notes


@dataclass
class _Found:
    """What both ways left."""

    one: OnePass
    moments: Moments | None
    """Of the model as it was given, without its lookups."""
    judge: _Judge
    lookups: list[Tensor]
    """Gradients at a tied head's lookups, of the windows that rounding is fitted to."""

    def finish_moments(self, job: _Job, folded: LoadedModel) -> None:
        """Write the moments of the model that is analyzed, as `emit` would gather them."""
        given = self.moments
        if given is None:
            return
        folder = moments_folder(job.run, "fit", job.calibration.fit_sha256)
        remove_folder(folder)
        for key in dict.fromkeys(given.key_of.values()):
            if given.tokens[key]:
                write_matrix(folder, key, _scaled(given.of(key), self.one.columns(key)).numpy())
        fit = Moments(folder, given.key_of, given.tokens)
        head = job.loaded.architecture.head
        if self.lookups:
            columns, lookups = self.one.columns(head), torch.cat(self.lookups)
            fit.add_lookups(head, lookups if columns is None else lookups / columns)
        # from here on a killed analysis starts again: what is written now ends what it would go on from
        remove_folder(job.run.between)
        fit.write_index({"model": folded.card.sha256, "tokens": job.calibration.fit_sha256})
        judged = Moments(self.judge.folder, given.key_of, self.judge.tokens)
        judged.write_index({"model": folded.card.sha256, "tokens": job.calibration.sha256})


@dataclass
class _Judge:
    """Writes the moments that rounding `auto` chooses by, tensor by tensor."""

    folder: Path
    key_of: dict[str, str]
    inputs: dict[str, str]
    """What the matrices depend on until all are there."""
    tokens: dict[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, job: _Job, key_of: dict[str, str]) -> _Judge:
        """Go on from what was written before a kill."""
        folder, inputs = moments_folder(job.run, "judge", job.calibration.sha256), job.inputs | {"unfinished": "yes"}
        kept = Moments.open(folder, inputs)
        return cls(folder, key_of, inputs, {} if kept is None else dict(kept.tokens))

    def keep(self, seen: Seen, columns: Tensor | None) -> None:
        """Write the matrix of a tensor's input, unless another with the same input was there first."""
        self.tokens[seen.name] = int(seen.inputs.any(-1).sum())
        Moments(self.folder, self.key_of, self.tokens).write_index(self.inputs)
        if seen.judge is not None and self.key_of[seen.name] == seen.name and self.tokens[seen.name]:
            write_matrix(self.folder, seen.name, _scaled(seen.judge, columns).cpu().numpy())


def _scaled(matrix: Tensor, columns: Tensor | None) -> Tensor:
    """Moments of inputs that are divided by ``columns``."""
    return matrix if columns is None else matrix / columns.outer(columns).to(matrix)


def _passes(job: _Job, analysis: Analysis) -> _Found:
    """There and back."""
    judged, witnesses = list(analysis.batches), job.witnesses
    fits = needs_tokens(job.options.rounding)
    kept = len(judged) + len(witnesses)
    folder = job.original
    inputs = {"model": job.loaded.card.sha256, "tokens": job.calibration.fit_sha256}
    moments = Moments.open(folder, inputs) if fits else None
    gather = fits and moments is None
    behind = job.fit if gather else witnesses
    between = job.between()
    half = half_products_pay(job.loaded.device)
    way = WayThere(job.loaded, judged + behind, kept, between, half)
    judge = _Judge.of(job, {} if moments is None else moments.key_of)
    draft = job.draft()
    turned = between.reached(len(job.loaded.layers)) is not None
    whole = can_go_on(
        analysis,
        between,
        kept,
        0 if turned else way.done,
        draft=draft if job.options.fold == "auto" else None,
        judged=judge.tokens if fits else None,
    )
    if between.folder is not None and ((gather and turned) or not whole):
        remove_folder(between.folder)
        turned = False
    more = ", second moments of all inputs" if gather else ""
    progress = job.stages.begin("forward", f"{sum(b.numel() for b in way.batches):,} tokens{more}")
    if gather:
        moments = gather_on_the_way(way, len(judged), folder, inputs=inputs, progress=progress)
        judge = replace(judge, key_of=moments.key_of)
    elif not turned:
        _go(way, progress)
    one = OnePass(
        analysis,
        witnesses,
        moments,
        DRAWN,
        fold=job.options.fold == "auto",
        draft=draft,
        keep=None if moments is None else judge.keep,
        workers=job.workers,
        half=half,
    )
    back = WayBack(
        job.loaded,
        judged + witnesses,
        between,
        label_seeds(job.calibration.seed, kept),
        drawn=one.views.drawn_of,
        half=half,
    )
    told = f"folds and losses of {len(job.options.formats)} formats, {DRAWN} output features of each tensor"
    one.run(back, job.stages.begin("backward", told))
    return _Found(one, moments, judge, back.lookups[len(judged) :])


def _go(way: WayThere, progress: Progress) -> None:
    """Run all layers that are not done."""
    count = len(way.loaded.layers)
    for index in range(way.done, count):
        with with_layer_read(way.loaded, index):
            for number in range(len(way.batches)):
                way.run(index, number)
        progress(index + 1, count)


def _fold(job: _Job, one: OnePass) -> tuple[LoadedModel, tuple[Note, ...]]:
    """The model with scales where they pay, and what was decided."""
    if job.options.fold != "auto":
        return job.loaded, ()
    loaded, draft, run = job.loaded, one.draft, job.run
    job.stages.begin("folded model")
    scales = {name: torch.tensor(scale, device=loaded.device) for name, scale in draft.scales.items()}
    folded = store_folded(run, loaded, scales, one.analysis.batches[0][:1]) if scales else loaded
    tokens = sum(batch.numel() for batch in one.analysis.batches)
    losses = model_losses(draft.losses, tokens)
    record = fold_record(run, loaded, folded if scales else None, job.options.memory, losses)
    record.write(run.fold, draft.inputs)
    job.say(str(record.note))
    return folded, (record.note,)
