"""From a model and a text to a sensitivity table on disk."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace

import torch

from qplan.calibration import load_text, tokenize
from qplan.card import ModelCard
from qplan.errors import InputError
from qplan.folding.decide import Folding, run_fold
from qplan.formats import DEFAULT_FORMATS, QuantFormat
from qplan.jobs.additivity import measure_additivity
from qplan.jobs.auto import analyze_auto
from qplan.model.load import DTypeName, load_model
from qplan.quantize.round_all import round_all
from qplan.quantize.run_rounder import run_rounder
from qplan.roundings import needs_tokens
from qplan.run.folder import RunFolder
from qplan.run.table import Mode, SensitivityTable
from qplan.sensitivity.analysis import Analysis, open_analysis
from qplan.sensitivity.gradient import estimate
from qplan.sensitivity.measured import measure
from qplan.settings import DynamicOption, Memory, Progress, Say

LOGITS_BYTES = 640 << 20
"""Of a pass, where the user does not say how many sequences it has."""


@dataclass(frozen=True)
class AnalyzeOptions:
    """What ``qplan analyze`` was asked for."""

    model: str
    calib: str = "python-stdlib"
    samples: int = 16
    seq_len: int = 256
    seed: int = 0
    formats: tuple[QuantFormat, ...] = DEFAULT_FORMATS
    memory: Memory = "low"
    mode: Mode = "auto"
    rounding: str = "auto"
    fold: Folding = "auto"
    fit_tokens: int = 32768
    """At most this many tokens that rounding is fitted to."""
    jobs: int = 1
    """Tensors that are rounded at a time."""
    dynamic_option: DynamicOption = 0
    """MNN's setting that losses under memory low are measured with."""
    batch_size: int | None = None
    """Sequences per pass; None for `sequences_per_pass`."""
    device: str = "cpu"
    dtype: DTypeName = "float32"
    restart: bool = False
    """Throw away what an earlier run with other inputs left."""


def run_analyze(options: AnalyzeOptions, run: RunFolder, say: Say, progress: Progress) -> SensitivityTable:
    """Load, tokenize, measure, write; goes on where an interrupted run with the same inputs stopped.

    Raises:
        InputError: a model, text or option that cannot be used, or two that do not go together.
        StaleArtifactError: the run folder holds the work of other inputs.
        MeasurementError: an impossible measurement.
    """
    _check(options)
    say(f"loading {options.model}")
    loaded = load_model(options.model, device=options.device, dtype=options.dtype)
    text = load_text(options.calib, loaded.tokenizer)
    calibration = tokenize(
        text,
        loaded.tokenizer,
        samples=options.samples,
        seq_len=options.seq_len,
        seed=options.seed,
        context=loaded.card.context,
        vocabulary=loaded.card.vocabulary,
        fit_tokens=options.fit_tokens,
    )
    if options.restart:
        for path in (run.journal, run.sensitivity, run.calibration, run.fold):
            path.unlink(missing_ok=True)
        for folder in (run.rounding, run.folded):
            shutil.rmtree(folder, ignore_errors=True)
    say(
        f"{len(loaded.card.tensors)} tensors, {len(options.formats)} formats, "
        f"{calibration.samples} sequences of {calibration.seq_len} tokens from {calibration.source}"
    )
    batch_size = options.batch_size or sequences_per_pass(loaded.card, calibration.seq_len)
    notes: tuple[str, ...] = ()
    if options.fold == "auto" and options.dtype != "float32":
        notes = (f"weights are not folded: what that gains cannot be measured in {options.dtype}",)
    elif options.fold == "auto":
        loaded, note = run_fold(
            run,
            loaded,
            calibration,
            options.memory,
            dynamic_option=options.dynamic_option,
            rounding=options.rounding,
            batch_size=batch_size,
            jobs=options.jobs,
            device=options.device,
            say=say,
            progress=progress,
        )
        notes = (note,)
    if needs_tokens(options.rounding):
        say(f"second moments of all inputs, {calibration.fit.size} tokens to fit rounding to")
    rounder = run_rounder(run, loaded, calibration, options.rounding, batch_size=batch_size, progress=progress)
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
            say(f"choosing integers, {options.jobs} tensors at a time")
        round_all(rounder, analysis.menu, jobs=options.jobs, progress=progress)
        table = analyze(analysis, options.mode, say, progress)
    if options.mode != "gradient":
        say("whole plans: how losses add up")
        tokens = torch.from_numpy(calibration.tokens)
        table = measure_additivity(table, loaded, tokens, batch_size=batch_size, rounder=rounder, progress=progress)
    table = replace(table, notes=(*table.notes, *notes))
    # only now: an interrupted or refused run must not change what a finished table refers to
    calibration.write(run.calibration)
    table.write(run.sensitivity)
    return table


def sequences_per_pass(card: ModelCard, seq_len: int) -> int:
    """As many as have `LOGITS_BYTES` of FP32 logits, 1 to 4: gradients hold them several times over."""
    return min(4, max(1, LOGITS_BYTES // (4 * seq_len * card.vocabulary)))


def _check(options: AnalyzeOptions) -> None:
    """Refuse options that do not go together.

    Raises:
        InputError: names them.
    """
    if options.dtype != "float32" and options.mode != "gradient":
        msg = (
            f"--dtype {options.dtype} --mode {options.mode}: only gradients have digits to spare for half precision, "
            "whose own rounding loses some hundred times what a tensor loses in int8; use --mode gradient or "
            "--dtype float32"
        )
        raise InputError(msg)
    if options.dynamic_option == 2 and options.memory != "low":
        msg = f"--dynamic-option 2 changes nothing under --memory {options.memory}: leave one of them out"
        raise InputError(msg)


def analyze(analysis: Analysis, mode: Mode, say: Say, progress: Progress) -> SensitivityTable:
    """The finished table of one mode.

    Raises:
        MeasurementError: an impossible measurement or estimate.
    """
    if mode == "auto":
        return analyze_auto(analysis, say=say, progress=progress)
    if mode == "measured":
        say("measuring every loss")
        measure(analysis, progress=progress)
    else:
        say("gradients of all formats in one pass")
        estimate(analysis, progress=progress)
    entries = [(name, fmt.name, memory) for name, fmt, memory in analysis.entries()]
    return analysis.table(mode, [row for entry in entries for row in analysis.rows(entry, mode)])
