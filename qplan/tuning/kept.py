"""Where a run keeps the integers that were fitted to a plan, and the rounder that stores what was built of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch

from qplan.artifact import sha256_json
from qplan.formats import QuantFormat
from qplan.quantize.rounder import Rounder
from qplan.quantize.stored_cache import FittedTensors, StoredCache
from qplan.run.calibration import CalibrationSet
from qplan.run.folder import RunFolder
from qplan.run.plan import Plan
from qplan.run.rounded import fitted_tensors
from qplan.sensitivity.joint import Variant
from qplan.settings import Memory
from qplan.tuning.sequential import SequentialFit

_SEEN: Memory = "normal"
"""Memory setting of the inputs that integers are fitted to: with int8 activations in them, qwen2-8m loses 0.99 (4 bits)
and 1.01 times as much (8 bits) on text of the kind fitted to, and 1.01 and 1.49 times as much on other text
(``reports/rounding/sequential.py``)."""


def fit_of(
    run: RunFolder, rounder: Rounder, calibration: CalibrationSet, formats: Mapping[str, QuantFormat]
) -> SequentialFit:
    """The fit of a plan's integers, as far as the run keeps it.

    Args:
        run: that made the plan.
        rounder: its rounding, one that fits to moments.
        calibration: its tokens.
        formats: the plan's.
    """
    inputs = {
        "model": rounder.loaded.card.sha256,
        "rounding": rounder.rounding,
        "fit": calibration.fit_sha256,
        "judge": calibration.sha256,
        "seen": _SEEN,
        "formats": sha256_json({name: fmt.name for name, fmt in sorted(formats.items())}),
    }
    cache = StoredCache(fitted_tensors(run, inputs), inputs)
    tokens = torch.from_numpy(calibration.fit)
    return SequentialFit(rounder, Variant(formats, _SEEN), tokens, cache, run.tuning / cache.folder.name)


def built_rounder(run: RunFolder, rounder: Rounder, calibration: CalibrationSet, plan: Plan) -> Rounder:
    """The rounder that stores what was built of a plan.

    Args:
        run: that made it.
        rounder: its rounding.
        calibration: its tokens.
        plan: that was built.
    """
    if plan.tuning is None or not plan.tuning.ships:
        return rounder
    fit = fit_of(run, rounder, calibration, plan.formats)
    return replace(rounder, fitted=FittedTensors(fit.cache, fit.shipped(head=plan.tuning.head)))
