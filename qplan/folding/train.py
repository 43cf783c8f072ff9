"""Trains the fold of a run, and keeps it if the model then loses less."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from qplan.artifact import is_there
from qplan.errors import InputError
from qplan.folding.analyzed import load_folded
from qplan.folding.decide import check_fold_inputs, fold_record, store_folded
from qplan.folding.trained import BITS, RATE, FoldTraining
from qplan.model.load import LoadedModel
from qplan.notes import Note
from qplan.rounding import Int8Activations
from qplan.run.calibration import CalibrationSet
from qplan.run.fold import FoldRecord
from qplan.run.folder import RunFolder
from qplan.settings import Memory, Progress, Say
from qplan.tuning.kept import HELD_OUT
from qplan.tuning.schedule import Schedule


class TooFewTokensError(InputError):
    """So few tokens that scales would learn them by heart."""


_BEGUN_TOKENS = 4096
"""Most tokens that channels are measured on, to begin with."""


def fold_schedule(rows: int, judged: int, seq_len: int) -> Schedule:
    """The schedule of training on so many windows, judged by half of so many others."""
    return Schedule.of(rows, len(range(*HELD_OUT.indices(judged))), seq_len, fixed_rate=RATE)


def run_fold_training(
    run: RunFolder,
    loaded: LoadedModel,
    calibration: CalibrationSet,
    activations: Int8Activations,
    memory: Memory,
    *,
    say: Say,
    progress: Progress,
) -> tuple[LoadedModel, Note]:
    """Train scales, and fold them if the model in 8 bits loses less on windows that they were not trained on.

    Args:
        run: keeps the folded model, and what a killed training goes on from. It decides once.
        loaded: the model as it was given.
        calibration: trained on are its ``fit`` windows, judged by half of the others.
        activations: the engine's.
        memory: of the analysis, for the record.
        say: called with what was decided.
        progress: called after each step.

    Returns:
        The folded model as stored in the run folder, or ``loaded``, and a note for the table.

    Raises:
        TooFewTokensError: see there.
        InputError: the model's weights stay on the disk.
        StaleArtifactError: the run decided this from other inputs; its folded model is left alone.
        MeasurementError: the folded model computes something else.
    """
    if loaded.streamed:
        msg = (
            "--fold trained: the model's weights stay on the disk, and training reads them at every step; raise "
            "--max-memory, or use --fold auto"
        )
        raise InputError(msg)
    inputs = {
        "model": loaded.card.sha256,
        "fit": calibration.fit_sha256,
        "judge": calibration.sha256,
        "memory": memory,
        "dynamic_option": str(activations.dynamic_option),
        "fold": "trained",
    }
    if is_there(run.fold):
        check_fold_inputs(run, inputs)
        record = FoldRecord.read(run.fold)
    else:
        before, after, scales = _train(run, loaded, calibration, activations, inputs, progress=progress)
        folded = store_folded(run, loaded, scales, torch.from_numpy(calibration.fit[:1])) if after < before else None
        name = f"int{BITS}, memory low"
        losses = {"original": {name: before}, "folded": {name: after}}
        record = fold_record(run, loaded, folded, memory, losses)
        record.write(run.fold, inputs)
        say(str(record.note))
    run.fold_training.unlink(missing_ok=True)
    if record.folded_sha256 is None:
        return loaded, record.note
    folded = load_folded(run, record, str(loaded.device), stream=loaded.streamed)
    return folded.within(loaded.card.context), record.note


def _train(
    run: RunFolder,
    loaded: LoadedModel,
    calibration: CalibrationSet,
    activations: Int8Activations,
    inputs: Mapping[str, str],
    *,
    progress: Progress,
) -> tuple[float, float, dict[str, Tensor]]:
    """What the model loses without scales and with them, and the scales ``[channels]`` by site name.

    Raises:
        TooFewTokensError: there are too few.
    """
    length = calibration.seq_len
    tokens = torch.from_numpy(np.concatenate([calibration.fit, calibration.tokens[HELD_OUT]]))
    schedule = fold_schedule(len(calibration.fit), len(calibration.tokens), length)
    if not schedule.is_worth_it:
        msg = (
            f"--fold trained: {len(calibration.fit)} windows of {length} tokens of calibration text allow "
            f"{schedule.steps} steps, and scales learn them by heart; give more text or --fit-tokens, or use --fold "
            "auto"
        )
        raise TooFewTokensError(msg)
    training = FoldTraining(loaded, tokens, activations, schedule, inputs, run.fold_training)
    before = training.unfolded_loss()
    training.begin(max(1, _BEGUN_TOKENS // length))
    return before, training.run(progress), training.scales
