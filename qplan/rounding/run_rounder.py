"""The rounder of a run, with the moments and the rounded tensors that the run keeps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from numpy.typing import NDArray

from qplan.formats import QuantFormat
from qplan.model.load import LoadedModel
from qplan.rounding.moment_tasks import gather_by
from qplan.rounding.moments import Moments, gather_moments
from qplan.rounding.rounder import Rounder
from qplan.rounding.stored_cache import StoredCache
from qplan.roundings import check_rounding, needs_tokens
from qplan.run.calibration import CalibrationSet
from qplan.run.folder import RunFolder
from qplan.run.moments import Part, moments_folder
from qplan.settings import Progress
from qplan.spread.work import Workers


def run_rounder(
    run: RunFolder,
    loaded: LoadedModel,
    calibration: CalibrationSet,
    rounding: str,
    *,
    menu: Mapping[str, Sequence[QuantFormat]] | None = None,
    within_int16: bool = False,
    batch_size: int = 4,
    workers: Workers | None = None,
    progress: Progress | None = None,
) -> Rounder:
    """Make a rounder, gathering moments that the run folder does not hold yet.

    It is fitted to the calibration's `fit` windows and chooses by the windows that losses are measured on.

    Args:
        run: the run that keeps moments and tensors.
        loaded: the model.
        calibration: the tokens.
        rounding: one of `qplan.roundings.ROUNDINGS`.
        menu: formats that tensors will be rounded to, by name. Where the run does not keep one yet, the tensor's
            moments are proved to be whole now, and gathered again if they are not; others when they are read.
        within_int16: whether sums of two products must fit int16, see `Target.adds_in_int16`.
        batch_size: sequences per pass.
        workers: of a cluster, who gather moments and round instead of this process.
        progress: called after each pass.

    Raises:
        InputError: an unknown rounding.
        MeasurementError: an input that is not finite.
    """
    check_rounding(rounding)
    if rounding == "rtn":
        return Rounder(loaded, "rtn", workers=workers, within_int16=within_int16)

    inputs = {"model": loaded.card.sha256, "rounding": rounding}
    inputs |= {"fit": calibration.fit_sha256} if needs_tokens(rounding) else {}
    inputs |= {"judge": calibration.sha256} if rounding == "auto" else {}
    rounded = StoredCache.of(run, inputs)
    pending = [
        name
        for name, formats in (menu or {}).items()
        if not all(fmt.is_float or rounded.holds(name, fmt) for fmt in formats)
    ]

    def moments(part: Part, tokens: NDArray[Any], sha256: str) -> Moments:
        folder = moments_folder(run, part, sha256)
        depends = {"model": loaded.card.sha256, "tokens": sha256}
        kept = Moments.open(folder, depends)
        if kept is not None and kept.are_whole(pending):
            return kept
        gather = gather_moments if workers is None else partial(gather_by, workers)
        return gather(
            loaded, torch.from_numpy(tokens), folder, inputs=depends, batch_size=batch_size, progress=progress
        )

    fit = moments("fit", calibration.fit, calibration.fit_sha256) if needs_tokens(rounding) else None
    judge = moments("judge", calibration.tokens, calibration.sha256) if rounding == "auto" else None
    return Rounder(loaded, rounding, fit, judge, rounded, workers, within_int16)
