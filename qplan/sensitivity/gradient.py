"""Losses from gradients: one forward and backward pass over the calibration tokens covers all formats."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch

from qplan.errors import MeasurementError
from qplan.model.backward import sampled_backward
from qplan.run.journal import ReferenceRecord, cell_of
from qplan.run.measurement import Measurement
from qplan.sensitivity.analysis import Analysis
from qplan.sensitivity.fisher import FisherObserver, FisherSetup
from qplan.settings import Memory, Progress, memories_of


def estimate(analysis: Analysis, *, progress: Progress | None = None) -> None:
    """Estimate all losses that are not estimated yet.

    Args:
        analysis: the entries to estimate, and where estimates are kept.
        progress: called after each batch.

    Raises:
        MeasurementError: no token reaches a tensor, or an estimate is not finite or is impossible.
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
    # an interrupted run draws the same labels again
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
    """Estimates of one tensor in all formats, for one batch."""
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
            # assumes errors orthogonal to the output
            cosine=1 / math.sqrt(1 + 10 ** (-sqnr[index] / 10)),
            source="gradient",
            stderr_nats=float(nats[index].std()) / math.sqrt(len(tokens)) if len(tokens) > 1 else None,
        )
