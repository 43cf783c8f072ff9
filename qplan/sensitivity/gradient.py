"""Losses from gradients: one forward and one backward pass over the calibration tokens for all formats together."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from qplan.errors import MeasurementError
from qplan.formats import QuantFormat
from qplan.model.backward import sampled_backward
from qplan.model.load import LoadedModel
from qplan.run.calibration import CalibrationSet
from qplan.run.journal import ReferenceRecord, cell_of
from qplan.run.measurement import Measurement
from qplan.run.table import SensitivityTable
from qplan.sensitivity.analysis import Analysis, open_analysis
from qplan.sensitivity.fisher import FisherObserver, FisherSetup
from qplan.settings import Memory, Progress, memories_of


def analyze(
    loaded: LoadedModel,
    calibration: CalibrationSet,
    formats: Sequence[QuantFormat],
    memory: Memory = "low",
    *,
    batch_size: int = 4,
    draws: int = 1,
    journal: Path | None = None,
    progress: Progress | None = None,
) -> SensitivityTable:
    """Estimate the loss of every format of every linear tensor, everything else in FP32.

    Args:
        loaded: the model.
        calibration: the tokens.
        formats: to estimate; blocks are resolved for each tensor.
        memory: MNN's memory setting whose arithmetic is emulated.
        batch_size: sequences per pass.
        draws: times that labels are sampled for each sequence; each costs a backward pass and lowers the noise.
        journal: where estimates are kept as they are made; an interrupted run with the same journal goes on.
        progress: called after each batch.

    Raises:
        MeasurementError: an estimate that is missing, not finite or impossible.
        StaleArtifactError: the journal was made from other inputs.
    """
    opened = open_analysis(loaded, calibration, formats, memory, batch_size=batch_size, draws=draws, journal=journal)
    with opened as analysis:
        estimate(analysis, progress=progress)
        rows = [row for n, f, m in analysis.entries() for row in analysis.rows((n, f.name, m), "gradient")]
        return analysis.table("gradient", rows)


def estimate(analysis: Analysis, *, progress: Progress | None = None) -> None:
    """Estimate what is not estimated yet.

    Args:
        analysis: what to estimate, and where it is kept.
        progress: called after each batch.

    Raises:
        MeasurementError: a tensor that is not reached, an estimate that is not finite or impossible.
    """
    low = analysis.conditions.memory == "low"
    activations = analysis.activations if low else None
    setup = FisherSetup(analysis.loaded, analysis.menu, analysis.stored, activations)
    known = analysis.kept.measurements
    for batch in range(len(analysis.batches)):
        if progress is not None:
            progress(batch, len(analysis.batches))
        cells = [(name, fmt.name, memory, batch, "gradient") for name, fmt, memory in analysis.entries()]
        if batch in analysis.kept.references and all(cell in known for cell in cells):
            continue
        for measurement in _estimate_batch(analysis, batch, setup):
            if cell_of(measurement) not in known:
                analysis.kept.add(measurement)
    if progress is not None:
        progress(len(analysis.batches), len(analysis.batches))
    for name, fmt, memory in analysis.entries():
        analysis.check_entry(name, fmt, memory, "gradient")


def _estimate_batch(analysis: Analysis, batch: int, setup: FisherSetup) -> list[Measurement]:
    tokens, conditions = analysis.batches[batch], analysis.conditions
    observer = FisherObserver(setup, tokens)
    # the same labels again if a run is interrupted
    seeds = np.random.SeedSequence([conditions.seed, batch]).generate_state(conditions.draws, np.uint64)
    nll = sampled_backward(analysis.loaded, tokens, [int(seed) for seed in seeds], observer)
    if batch not in analysis.kept.references:
        analysis.kept.add_reference(ReferenceRecord(batch, len(nll), float(nll.mean())))
    return [
        measurement
        for name in analysis.menu
        for memory in memories_of(conditions.memory)
        for measurement in _measurements(analysis, batch, observer, name, memory)
    ]


def _measurements(
    analysis: Analysis, batch: int, observer: FisherObserver, name: str, memory: Memory
) -> Iterator[Measurement]:
    """One tensor in all formats."""
    tokens, formats = analysis.batches[batch], analysis.menu[name]
    int8 = memory == "low"
    squares = torch.stack([observer.squares(name, index, int8=int8) for index in range(len(formats))])
    # half the square is a sequence's KL; draws are averaged
    nats = squares * (0.5 / analysis.conditions.draws / tokens.shape[1])
    sqnr = observer.sqnr_db(name, int8=int8)
    for index, fmt in enumerate(formats):
        mean = float(nats[index].mean())
        if not math.isfinite(mean):
            msg = f"{name} in {fmt}, memory {memory}, batch {batch}: gradients or stored weights are not finite"
            raise MeasurementError(msg)
        yield Measurement(
            tensor=name,
            format=fmt.name,
            memory=memory,
            batch=batch,
            tokens=tokens.numel(),
            kl_nats=mean,
            sqnr_db=sqnr[index],
            # as if errors were orthogonal to the output
            cosine=1 / math.sqrt(1 + 10 ** (-sqnr[index] / 10)),
            source="gradient",
            stderr_nats=float(nats[index].std()) / math.sqrt(len(tokens)) if len(tokens) > 1 else None,
        )
