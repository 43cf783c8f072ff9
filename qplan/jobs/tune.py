"""Fits the integers of a plan to it as a whole, between planning and building."""

from __future__ import annotations

from dataclasses import replace

import torch

from qplan.artifact import remove_folder, sha256_json
from qplan.cost.emit import JUDGING, TUNING
from qplan.jobs.emit_job import EmitJob
from qplan.notes import note
from qplan.quantize import Int8Activations
from qplan.quantize.stored_cache import StoredCache
from qplan.run.calibration import CalibrationSet
from qplan.run.plan import Plan, Tuning
from qplan.run.rounded import fitted_tensors
from qplan.sensitivity.joint import Variant
from qplan.settings import DynamicOption, Memory, without_half
from qplan.tuning.judge import judged
from qplan.tuning.sequential import SequentialFit

_SEEN: Memory = "normal"
"""Memory setting of the inputs that integers are fitted to: with int8 activations in them, qwen2-8m loses 0.99 (4 bits)
and 1.01 times as much (8 bits) on text of the kind fitted to, and 1.01 and 1.49 times as much on other text
(``reports/rounding/sequential.py``)."""


def tuned(job: EmitJob, plan: Plan, option: DynamicOption) -> tuple[EmitJob, Plan]:
    """The job with the integers that ship, and the plan with what fitting them came to.

    Args:
        job: the emit.
        plan: what is to be built.
        option: the ``dynamic_option`` that it will presumably ship with.
    """
    if not job.options.tunes(job.rounder.rounding):
        return job, replace(plan, tuning=None)
    calibration = CalibrationSet.read(job.run.calibration)
    shipped = Int8Activations("prefill", option, without_half(job.target.arithmetic))
    inputs = {
        "model": job.model.loaded.card.sha256,
        "rounding": job.rounder.rounding,
        "fit": calibration.fit_sha256,
        "judge": calibration.sha256,
        "seen": _SEEN,
        "formats": sha256_json({name: fmt.name for name, fmt in sorted(plan.formats.items())}),
    }
    folder = fitted_tensors(job.run, inputs)
    between = job.run.tuning / folder.name
    if not between.is_dir():  # of another plan, whose fit was killed
        remove_folder(job.run.tuning)
    told = f"fitting integers to the plan: {calibration.fit.size} tokens, layer after layer"
    fit = SequentialFit(
        job.rounder,
        Variant(plan.formats, _SEEN),
        torch.from_numpy(calibration.fit),
        StoredCache(folder, inputs),
        between,
        jobs=job.jobs,
        progress=job.stages.visit(TUNING, told),
    )
    if not fit.formats:
        return job, replace(plan, tuning=None)
    fit.run()
    remove_folder(job.run.tuning)
    told = f"whole models with integers fitted to the plan and without: {calibration.tokens.size} calibration tokens"
    found = judged(
        fit, Variant(plan.formats, plan.memory, shipped), calibration.tokens, job.stages.visit(JUDGING, told)
    )
    return replace(job, rounder=found.rounder), _recorded(plan, found.record)


def _recorded(plan: Plan, tuning: Tuning) -> Plan:
    """The plan with what fitting came to; its prediction is that of integers fitted one by one until then."""
    times = tuning.after_nats / tuning.before_nats if tuning.before_nats else 1.0
    told = note(
        "integers-tuned" if tuning.ships else "tuning-gains-nothing",
        times=times,
        before_nats=tuning.before_nats,
        after_nats=tuning.after_nats,
        tokens=tuning.tokens,
        memory=plan.memory,
    )
    predicted = plan.predicted_nats * times if tuning.ships else plan.predicted_nats
    return replace(plan, tuning=tuning, predicted_nats=predicted).noted(told)
