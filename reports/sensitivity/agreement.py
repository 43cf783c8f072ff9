"""How well predicted losses agree with measured ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import spearmanr

from qplan.run.table import SensitivityTable
from qplan.settings import Memory


@dataclass(frozen=True)
class Agreement:
    """Predicted losses against measured ones."""

    count: int
    spearman: float
    median_ratio: float
    """Median of predicted over measured."""
    log_error: float
    """Root mean square of log(predicted / measured)."""
    within_two_errors: float | None = None
    """Share of measured losses within two standard errors of the prediction."""


@dataclass(frozen=True)
class FormatAgreement:
    """One format of all tensors under a memory setting."""

    memory: Memory
    format: str
    agreement: Agreement | None
    """None where the format keeps every weight to the bit, and both losses are 0."""


def agree(predicted: Sequence[float], measured: Sequence[float], errors: Sequence[float] | None = None) -> Agreement:
    """Compare predictions with measurements, both positive."""
    ours, theirs = np.asarray(predicted), np.asarray(measured)
    logs = np.log(ours / theirs)
    inside = None if errors is None else float(np.mean(np.abs(ours - theirs) <= 2 * np.asarray(errors)))
    return Agreement(
        len(ours),
        float(spearmanr(ours, theirs)[0]),
        float(np.exp(np.median(logs))),
        float(np.sqrt(np.mean(logs**2))),
        inside,
    )


def by_format(predicted: SensitivityTable, measured: SensitivityTable) -> list[FormatAgreement]:
    """Compare two tables format by format."""
    found = []
    for memory in measured.memories:
        ours, theirs = predicted.losses(memory), measured.losses(memory)
        for fmt in measured.conditions.formats:
            names = [name for name, row in theirs.items() if fmt in row]
            lossy = [name for name in names if theirs[name][fmt].kl_nats > 0]
            if any(ours[name][fmt].kl_nats != 0 for name in set(names) - set(lossy)):
                msg = f"{fmt} is lossless when measured but not when estimated"
                raise ValueError(msg)
            agreement = None
            if lossy:
                agreement = agree(
                    [ours[name][fmt].kl_nats for name in lossy],
                    [theirs[name][fmt].kl_nats for name in lossy],
                    [ours[name][fmt].stderr_nats for name in lossy],
                )
            found.append(FormatAgreement(memory, fmt, agreement))
    return found
