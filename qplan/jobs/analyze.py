"""From a model and a text to a sensitivity table on disk."""

from __future__ import annotations

import time
from dataclasses import replace

import torch

from qplan.artifact import is_there, remove_folder
from qplan.calibration import check_chat_template, check_ids, load_text, tokenize
from qplan.cost.file_bytes import estimate_fixed
from qplan.cost.one_pass import FOLD_TRAINING
from qplan.folding.decide import run_fold
from qplan.folding.train import run_fold_training
from qplan.folding.trained import BITS
from qplan.jobs.additivity import measure_additivity
from qplan.jobs.auto import analyze_auto
from qplan.jobs.checks import check_analyze
from qplan.jobs.deciding import BUDGETS
from qplan.jobs.expect import AnalysisOutlook, expect_analysis
from qplan.jobs.model_context import check_context
from qplan.jobs.one_pass import EMBEDDING_TOLD, analyze_in_one_pass
from qplan.jobs.options import AnalyzeOptions, sequences_per_pass
from qplan.jobs.stages import Stages
from qplan.model.load import LoadedModel, load_model, loading_line
from qplan.model.source import local_folder
from qplan.model.tokenizer_class import unknown_tokenizer_class
from qplan.notes import Note, note
from qplan.planner.elbow_room import notes_on_menu
from qplan.rounding import Int8Activations
from qplan.rounding.round_all import default_jobs, round_all
from qplan.rounding.run_rounder import run_rounder
from qplan.roundings import needs_tokens
from qplan.run.calibration import CalibrationSet
from qplan.run.folder import RunFolder
from qplan.run.lock import alone_in_run
from qplan.run.table import SensitivityTable
from qplan.run.took import Took
from qplan.sensitivity.analysis import Analysis, open_analysis
from qplan.sensitivity.embedding import measure_embedding
from qplan.sensitivity.gradient import estimate
from qplan.sensitivity.measured import measure
from qplan.sensitivity.menu import resolve_menu
from qplan.settings import Mode, Progress, Say
from qplan.spread.nodes import workers_at
from qplan.spread.work import Workers


@alone_in_run("analyze")
def run_analyze(options: AnalyzeOptions, run: RunFolder, say: Say, progress: Progress) -> SensitivityTable:
    """Load, tokenize, measure and write; resumes an interrupted run with the same inputs.

    Raises:
        InputError: a model, text or option cannot be used, or two options contradict each other.
        StaleArtifactError: the run folder holds results of other inputs.
        MeasurementError: a measurement is impossible.
    """
    check_analyze(options)
    begun, known = time.monotonic(), run.is_finished and is_there(run.took) and not options.restart
    resumed = is_there(run.journal) and not options.restart
    with workers_at(options.ray, run, local_folder(options.model), say) as workers:
        table = _analyze(options, run if workers is None else run.from_anywhere(), workers, say, progress)
    if not known:  # what a finished analysis took is not what it takes to look at it again
        Took.since(begun, "analyze", resumed=resumed).write(run.took, table.model.sha256)
    return table


def _analyze(
    options: AnalyzeOptions, run: RunFolder, workers: Workers | None, say: Say, progress: Progress
) -> SensitivityTable:
    context = check_context(options)
    for told in context.notes:
        say(str(told))
    outlook = _outlook(options, run, say)
    stages = Stages(None if outlook is None else outlook.expected, say, progress)
    streamed = outlook is not None and outlook.asked.streamed
    stages.begin("loading", loading_line(options.model, streamed=streamed))
    loaded = load_model(options.model, device=options.device, dtype=options.dtype, stream=streamed)
    loaded = loaded.within(context.tokens)
    notes = _notes_on(loaded)
    for told in notes:
        say(str(told))
    text = load_text(options.calib, loaded.tokenizer, say)
    calibration = tokenize(
        text,
        loaded.tokenizer,
        samples=options.samples,
        seq_len=options.sequence(loaded.card.context),
        seed=options.seed,
        context=loaded.card.context,
        vocabulary=loaded.card.vocabulary,
        fit_tokens=options.most_fit_tokens(loaded.card.parameters),
    )
    if options.restart:
        _discard(run)
    say(
        f"{len(loaded.card.planned)} tensors, {len(options.formats)} formats, "
        f"{calibration.samples} sequences of {calibration.seq_len} tokens from {calibration.source}"
    )
    jobs = options.jobs or (default_jobs() if options.device == "cpu" else 1)
    own = options.batch_size or sequences_per_pass(loaded.card, calibration.seq_len)
    batch_size = own if outlook is None else outlook.asked.batch_size
    notes = (*context.notes, *notes, *text.notes)
    loaded, on_fold = _with_trained_fold(options, run, loaded, calibration, stages)
    notes += on_fold
    mode: Mode | None = "measured" if options.effort == "thorough" else options.mode
    if mode is None:
        table = analyze_in_one_pass(
            options, run, loaded, calibration, batch_size=batch_size, say=say, stages=stages, workers=workers
        )
        stages.end()
        return _written(table, notes, calibration, run)
    if options.fold == "auto" and options.dtype != "float32":
        notes += (note("folding-not-tried", dtype=options.dtype),)
    elif options.fold == "auto":
        loaded, decided = run_fold(
            run,
            loaded,
            calibration,
            options.memory,
            dynamic_option=options.dynamic_option,
            rounding=options.rounding,
            batch_size=batch_size,
            jobs=jobs,
            workers=workers,
            device=options.device,
            say=say,
            progress=progress,
        )
        notes += (decided,)
    if needs_tokens(options.rounding):
        say(f"second moments of all inputs, {calibration.fit.size:,} tokens for fitting the rounding")
    rounder = run_rounder(
        run,
        loaded,
        calibration,
        options.rounding,
        menu=resolve_menu(loaded.card, options.formats, options.dynamic_option)[0],
        batch_size=batch_size,
        workers=workers,
        progress=progress,
    )
    opened = open_analysis(
        loaded,
        calibration,
        options.formats,
        options.memory,
        batch_size=batch_size,
        dynamic_option=options.dynamic_option,
        rounder=rounder,
        journal=run.journal,
    )
    with opened as analysis:
        if options.rounding != "rtn":
            say(f"rounding tensors, {jobs} at a time")
        round_all(rounder, analysis.menu, jobs=jobs, progress=progress)
        table = analyze(analysis, mode, say, progress, workers)
    if mode != "gradient":
        say("measuring whole plans: how losses add up")
        tokens = torch.from_numpy(calibration.tokens)
        table = measure_additivity(table, loaded, tokens, batch_size=batch_size, rounder=rounder, progress=progress)
    return _written(table, notes, calibration, run)


def _with_trained_fold(
    options: AnalyzeOptions, run: RunFolder, loaded: LoadedModel, calibration: CalibrationSet, stages: Stages
) -> tuple[LoadedModel, tuple[Note, ...]]:
    """The model with scales that were trained, if that was asked for and it loses less with them, and a note on it."""
    if options.fold != "trained":
        return loaded, ()
    told = f"training the scales of all folds on the loss of the whole model in {BITS} bits"
    folded, decided = run_fold_training(
        run,
        loaded,
        calibration,
        Int8Activations("prefill", options.dynamic_option),
        options.memory,
        say=stages.say,
        progress=stages.begin(FOLD_TRAINING, told),
    )
    return folded, (decided,)


def _outlook(options: AnalyzeOptions, run: RunFolder, say: Say) -> AnalysisOutlook | None:
    """What lies ahead, told where it takes long.

    Raises:
        InputError: this machine has too little memory.
        StorageError: it has too little room on the disk.
    """
    outlook = expect_analysis(options, run)
    if outlook is not None:
        outlook.check()
        if outlook.is_long:
            outlook.tell(say)
    return outlook


def _written(
    table: SensitivityTable, notes: tuple[Note, ...], calibration: CalibrationSet, run: RunFolder
) -> SensitivityTable:
    """Write what was found, last: an interrupted or refused run must not change what a finished table refers to."""
    room = notes_on_menu(table, estimate_fixed(table.model), BUDGETS)
    table = replace(table, notes=(*table.notes, *notes, *room))
    calibration.write(run.calibration)
    table.write(run.sensitivity)
    return table


def _discard(run: RunFolder) -> None:
    """Delete what an earlier analysis left."""
    for path in (run.journal, run.sensitivity, run.calibration, run.fold, run.fold_draft, run.fold_training):
        path.unlink(missing_ok=True)
    for folder in (run.rounding, run.folded):
        remove_folder(folder)


def _notes_on(loaded: LoadedModel) -> tuple[Note, ...]:
    """What is unusual about a model and its tokenizer.

    Raises:
        InputError: the tokenizer has tokens that the model lacks, or a chat template that does not parse.
    """
    check_ids(loaded.tokenizer, loaded.card.vocabulary)
    notes = check_chat_template(loaded.tokenizer)
    if loaded.own_classes:
        notes += (note("own-code-not-run", classes=list(loaded.own_classes)),)
    named = unknown_tokenizer_class(loaded.folder)
    if named is not None:
        notes += (note("tokenizer-class-unknown", named=named, used=type(loaded.tokenizer).__name__),)
    if loaded.tied_by_values:
        notes += (note("tied-by-values", head=loaded.architecture.head),)
    return notes


def analyze(
    analysis: Analysis, mode: Mode, say: Say, progress: Progress, workers: Workers | None = None
) -> SensitivityTable:
    """Find all losses in one mode and return the finished table.

    Raises:
        MeasurementError: a measurement or estimate is impossible.
    """
    if any(analysis.embedding_entries()):
        say(EMBEDDING_TOLD)
        measure_embedding(analysis, progress)
    if mode == "auto":
        return analyze_auto(analysis, say=say, workers=workers, progress=progress)
    if mode == "measured":
        say("measuring every loss")
        measure(analysis, workers=workers, progress=progress)
    else:
        say("gradients of all formats in one pass")
        estimate(analysis, progress=progress)
    return analysis.table(mode, analysis.all_rows(mode))
