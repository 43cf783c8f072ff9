"""Fits a plan as a whole, between planning and building: its integers in order, then its scales end to end."""

from __future__ import annotations

from dataclasses import replace

from qplan.artifact import remove_folder
from qplan.cost.emit import JUDGING, JUDGING_SCALES, TRAINING, TUNING
from qplan.jobs.emit_job import EmitJob
from qplan.rounding import Int8Activations
from qplan.run.calibration import CalibrationSet
from qplan.run.plan import Plan
from qplan.sensitivity.joint import Variant
from qplan.settings import DynamicOption, without_half
from qplan.tuning.judge import Tuned, in_order, judged, with_scales
from qplan.tuning.kept import JUDGED, fit_of, scales_of


def tuned(job: EmitJob, plan: Plan, option: DynamicOption) -> tuple[EmitJob, Plan]:
    """The job with the integers and scales that ship, and the plan with what fitting them came to.

    Args:
        job: the emit.
        plan: what is to be built.
        option: the ``dynamic_option`` that it will presumably ship with.
    """
    calibration = CalibrationSet.read(job.run.calibration)
    acting = Int8Activations("prefill", option, without_half(job.target.arithmetic))
    shipped = Variant(plan.formats, plan.memory, acting)
    found = Tuned(job.rounder)
    if job.options.tunes(job.rounder.rounding):
        found = _in_order(job, found, shipped, calibration)
    found = _trained(job, found, shipped, calibration)
    remove_folder(job.run.tuning)
    if found.record is None:
        return job, plan
    return replace(job, rounder=found.rounder), plan.tuned(found.record)


def _in_order(job: EmitJob, before: Tuned, plan: Variant, calibration: CalibrationSet) -> Tuned:
    layers = job.options.tune == "full"
    fit = fit_of(job.run, before.rounder, calibration, plan.formats, layers=layers)
    if not fit.formats:
        return before
    what = "fitting integers to the plan and training layers" if layers else "fitting integers to the plan"
    told = f"{what}: {calibration.fit.size} tokens, layer after layer"
    fit.run(jobs=job.jobs, progress=job.stages.visit(TUNING, told))
    told = f"whole models with integers fitted to the plan and without: {calibration.tokens.size} calibration tokens"
    return judged(before, in_order(fit), plan, calibration.tokens, job.stages.visit(JUDGING, told))


def _trained(job: EmitJob, before: Tuned, plan: Variant, calibration: CalibrationSet) -> Tuned:
    if job.schedule is None:
        return before
    fit = scales_of(job.run, before, calibration, plan, job.schedule)
    if not fit.formats:
        return before
    told = (
        f"training scales on the loss of the whole model: {job.schedule.steps} steps of "
        f"{job.schedule.tokens_of_step} tokens"
    )
    fit.run(progress=job.stages.visit(TRAINING, told))
    tokens = calibration.tokens[JUDGED]
    told = f"whole models with trained scales and without: {tokens.size} calibration tokens"
    progress = job.stages.visit(JUDGING_SCALES, told)
    before = before.on(JUDGED, calibration.seq_len)
    return judged(before, [with_scales(fit, before)], plan, tokens, progress)
