"""Tables in one call, as `qplan analyze` makes them: all measured, or all estimated from gradients."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from qplan.formats import QuantFormat
from qplan.model.load import LoadedModel
from qplan.run.calibration import CalibrationSet
from qplan.run.table import SensitivityTable
from qplan.sensitivity.analysis import open_analysis
from qplan.sensitivity.embedding import measure_embedding
from qplan.sensitivity.gradient import estimate
from qplan.sensitivity.measured import measure
from qplan.sensitivity.metrics import TokenStats, compare, reference_of
from qplan.settings import Memory, Progress


def measured_table(
    loaded: LoadedModel,
    calibration: CalibrationSet,
    formats: Sequence[QuantFormat],
    memory: Memory = "low",
    *,
    batch_size: int = 4,
    journal: Path | None = None,
    progress: Progress | None = None,
) -> SensitivityTable:
    """Measure the loss of every format of every linear tensor."""
    opened = open_analysis(loaded, calibration, formats, memory, batch_size=batch_size, journal=journal)
    with opened as analysis:
        measure_embedding(analysis)
        measure(analysis, progress=progress)
        rows = [row for n, f, m in analysis.entries() for row in analysis.rows((n, f.name, m), "measured")]
        return analysis.table("measured", rows)


def estimated_table(
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
    """Estimate the loss of every format of every linear tensor."""
    opened = open_analysis(loaded, calibration, formats, memory, batch_size=batch_size, draws=draws, journal=journal)
    with opened as analysis:
        measure_embedding(analysis)
        estimate(analysis, progress=progress)
        rows = [row for n, f, m in analysis.entries() for row in analysis.rows((n, f.name, m), "gradient")]
        return analysis.table("gradient", rows)


def compare_logits(reference: Tensor, variant: Tensor, tokens: Tensor) -> TokenStats:
    """Compare two models' logits ``[rows, seq_len, vocabulary]`` on token ids ``[rows, seq_len]``."""
    return compare(reference_of(reference, tokens), variant)
