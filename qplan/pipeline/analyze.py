"""From a model and a text to a sensitivity table on disk."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from qplan.calibration import load_text, tokenise
from qplan.formats import DEFAULT_FORMATS, QuantFormat
from qplan.model.load import load_model
from qplan.pipeline.runs import Run
from qplan.sensitivity.measured import analyze as measure
from qplan.sensitivity.table import Memory, SensitivityTable

Say = Callable[[str], None]
Progress = Callable[[int, int], None]


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
    batch_size: int = 4
    device: str = "cpu"
    restart: bool = False
    """Throw away what an earlier run with other inputs left."""


def run_analyze(options: AnalyzeOptions, run: Run, say: Say, progress: Progress) -> SensitivityTable:
    """Load, tokenise, measure, write; goes on where an interrupted run with the same inputs stopped.

    Raises:
        InputError: a model, text or option that cannot be used.
        StaleArtifactError: the run folder holds the work of other inputs.
        MeasurementError: an impossible measurement.
    """
    say(f"loading {options.model}")
    loaded = load_model(options.model, device=options.device)
    text = load_text(options.calib, loaded.tokenizer)
    calibration = tokenise(
        text,
        loaded.tokenizer,
        samples=options.samples,
        seq_len=options.seq_len,
        seed=options.seed,
        context=loaded.card.context,
        vocabulary=loaded.card.vocabulary,
    )
    if options.restart:
        for path in (run.journal, run.sensitivity, run.calibration):
            path.unlink(missing_ok=True)
    say(
        f"{len(loaded.card.tensors)} tensors, {len(options.formats)} formats, "
        f"{calibration.samples} sequences of {calibration.seq_len} tokens from {calibration.source}"
    )
    table = measure(
        loaded,
        calibration,
        options.formats,
        options.memory,
        batch_size=options.batch_size,
        journal=run.journal,
        progress=progress,
    )
    # only now: an interrupted or refused run must not change what a finished table refers to
    calibration.write(run.calibration)
    table.write(run.sensitivity)
    return table
