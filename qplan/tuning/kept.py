"""Where a run keeps what was fitted to a plan, and the rounder that stores what was built of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch

from qplan.artifact import sha256_json
from qplan.cost.target import find_target
from qplan.formats import QuantFormat
from qplan.rounding import Int8Activations
from qplan.rounding.rounder import Rounder
from qplan.rounding.stored_cache import FittedTensors, StoredCache
from qplan.run.calibration import CalibrationSet
from qplan.run.folder import RunFolder
from qplan.run.plan import Plan
from qplan.run.rounded import fitted_tensors
from qplan.sensitivity.joint import Variant
from qplan.settings import Memory, without_half
from qplan.tuning.judge import Tuned
from qplan.tuning.scales import ScaleFit
from qplan.tuning.schedule import EPOCHS, EPOCHS_OF_FULL, STEPS, Schedule
from qplan.tuning.sequential import SequentialFit

_SEEN: Memory = "normal"
"""Memory setting of the inputs that integers are fitted to: with int8 activations in them, qwen2-8m loses 0.99 (4 bits)
and 1.01 times as much (8 bits) on text of the kind fitted to, and 1.01 and 1.49 times as much on other text
(``reports/rounding/sequential.py``)."""

IN_ORDER = {"restarts": "by tokens", "weights": "by state, in tensors of MLPs"}
"""How integers are fitted in order, among what they depend on: fits that were made otherwise are made again."""

HELD_OUT, JUDGED = slice(0, None, 2), slice(1, None, 2)
"""Of the calibration rows that losses are measured on: those by which training of scales ends, and those that decide
whether these ship."""


def schedule_of(calibration: CalibrationSet, most: int = STEPS, *, epochs: int = EPOCHS) -> Schedule:
    """The schedule of training on a run's tokens, in so many steps at most, on each token so many times at most."""
    held_out = len(calibration.tokens[HELD_OUT])
    return Schedule.of(len(calibration.fit), held_out, calibration.seq_len, most=most, epochs=epochs)


def fit_of(
    run: RunFolder,
    rounder: Rounder,
    calibration: CalibrationSet,
    formats: Mapping[str, QuantFormat],
    *,
    layers: bool = False,
) -> SequentialFit:
    """The fit of a plan's integers, as far as the run keeps it.

    Args:
        run: that made the plan.
        rounder: its rounding, one that fits to moments.
        calibration: its tokens.
        formats: the plan's.
        layers: whether each layer is trained.
    """
    inputs = _inputs(rounder, calibration, formats) | IN_ORDER | {"seen": _SEEN}
    if layers:
        inputs |= {"layers": "trained"}
    if rounder.within_int16:
        inputs |= {"integers": "within int16"}
    cache = StoredCache(fitted_tensors(run, inputs), inputs)
    tokens = torch.from_numpy(calibration.fit)
    between = run.tuning / cache.folder.name
    return SequentialFit(rounder, Variant(formats, _SEEN), tokens, cache, between, trains=layers)


def scales_of(
    run: RunFolder, before: Tuned, calibration: CalibrationSet, plan: Variant, schedule: Schedule
) -> ScaleFit:
    """The training of a plan's scales, as far as the run keeps it.

    Args:
        run: that made the plan.
        before: the integers that it ships with.
        calibration: the run's tokens.
        plan: as it will ship.
        schedule: of the training.
    """
    acting, rounder = plan.activations, before.rounder
    inputs = _inputs(rounder, calibration, plan.formats) | {
        "trained": f"memory {plan.memory}, {acting.path}, option {acting.dynamic_option}, {acting.arithmetic}",
        "integers": before.base + (", within int16" if rounder.within_int16 else ""),
        "steps": str(schedule.steps),
    }
    cache = StoredCache(fitted_tensors(run, inputs), inputs)
    state = run.tuning / cache.folder.name / "state.safetensors"
    tokens = torch.from_numpy(np.concatenate([calibration.fit, calibration.tokens[HELD_OUT]]))
    return ScaleFit(rounder, plan, tokens, cache, schedule, state)


def built_rounder(run: RunFolder, rounder: Rounder, calibration: CalibrationSet, plan: Plan) -> Rounder:
    """The rounder that stores what was built of a plan.

    Args:
        run: that made it.
        rounder: its rounding.
        calibration: its tokens.
        plan: that was built.
    """
    told = plan.tuning
    if told is None or not told.ships:
        return rounder
    if told.method != "scales":
        fit = fit_of(run, rounder, calibration, plan.formats, layers=told.layers)
        rounder = replace(rounder, fitted=FittedTensors(fit.cache, fit.shipped(head=told.head)))
    if not told.steps:
        return rounder
    arithmetic = without_half(find_target(plan.target).arithmetic)
    shipped = Variant(plan.formats, plan.memory, Int8Activations("prefill", told.dynamic_option, arithmetic))
    schedule = schedule_of(calibration, told.steps, epochs=EPOCHS_OF_FULL)
    integers = replace(told, method="sequential", ships=told.method != "scales")
    scales = scales_of(run, Tuned(rounder, integers), calibration, shipped, schedule)
    return replace(rounder, fitted=FittedTensors(scales.cache, scales.formats))


def _inputs(rounder: Rounder, calibration: CalibrationSet, formats: Mapping[str, QuantFormat]) -> dict[str, str]:
    return {
        "model": rounder.loaded.card.sha256,
        "rounding": rounder.rounding,
        "fit": calibration.fit_sha256,
        "judge": calibration.sha256,
        "formats": sha256_json({name: fmt.name for name, fmt in sorted(formats.items())}),
    }
