"""The rounder of a run, with the moments and the rounded tensors that the run keeps."""

from __future__ import annotations

from typing import Any

import torch
from numpy.typing import NDArray

from qplan.model.load import LoadedModel
from qplan.quantize.moments import Moments, gather_moments
from qplan.quantize.rounder import Rounder
from qplan.quantize.stored_cache import StoredCache
from qplan.roundings import check_rounding, needs_tokens
from qplan.run.calibration import CalibrationSet
from qplan.run.folder import RunFolder
from qplan.run.moments import Part, moments_folder
from qplan.settings import Progress


def run_rounder(
    run: RunFolder,
    loaded: LoadedModel,
    calibration: CalibrationSet,
    rounding: str,
    *,
    batch_size: int = 4,
    progress: Progress | None = None,
) -> Rounder:
    """Make a rounder, gathering moments that the run folder does not hold yet.

    It is fitted to the calibration's `fit` windows and chooses by the windows that losses are measured on.

    Args:
        run: the run that keeps moments and tensors.
        loaded: the model.
        calibration: the tokens.
        rounding: one of `qplan.roundings.ROUNDINGS`.
        batch_size: sequences per pass.
        progress: called after each pass.

    Raises:
        InputError: an unknown rounding.
        MeasurementError: an input that is not finite.
    """
    check_rounding(rounding)
    if rounding == "rtn":
        return Rounder(loaded, "rtn")

    def moments(part: Part, tokens: NDArray[Any], sha256: str) -> Moments:
        folder = moments_folder(run, part, sha256)
        inputs = {"model": loaded.card.sha256, "tokens": sha256}
        return Moments.open(folder, inputs) or gather_moments(
            loaded, torch.from_numpy(tokens), folder, inputs=inputs, batch_size=batch_size, progress=progress
        )

    fit = moments("fit", calibration.fit, calibration.fit_sha256) if needs_tokens(rounding) else None
    judge = moments("judge", calibration.tokens, calibration.sha256) if rounding == "auto" else None
    inputs = {"model": loaded.card.sha256, "rounding": rounding}
    inputs |= {"fit": calibration.fit_sha256} if fit is not None else {}
    inputs |= {"judge": calibration.sha256} if judge is not None else {}
    return Rounder(loaded, rounding, fit, judge, StoredCache.of(run, inputs))
