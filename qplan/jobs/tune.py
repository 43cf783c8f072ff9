"""Fits the integers of a plan to it as a whole, between planning and building."""

from __future__ import annotations

from dataclasses import replace

from qplan.artifact import remove_folder
from qplan.cost.emit import JUDGING, TUNING
from qplan.jobs.emit_job import EmitJob
from qplan.quantize import Int8Activations
from qplan.run.calibration import CalibrationSet
from qplan.run.plan import Plan
from qplan.sensitivity.joint import Variant
from qplan.settings import DynamicOption, without_half
from qplan.tuning.judge import judged
from qplan.tuning.kept import fit_of


def tuned(job: EmitJob, plan: Plan, option: DynamicOption) -> tuple[EmitJob, Plan]:
    """The job with the integers that ship, and the plan with what fitting them came to.

    Args:
        job: the emit.
        plan: what is to be built.
        option: the ``dynamic_option`` that it will presumably ship with.
    """
    if not job.options.tunes(job.rounder.rounding):
        return job, plan
    calibration = CalibrationSet.read(job.run.calibration)
    shipped = Int8Activations("prefill", option, without_half(job.target.arithmetic))
    fit = fit_of(job.run, job.rounder, calibration, plan.formats)
    if not fit.formats:
        return job, plan
    if fit.between is not None and not fit.between.is_dir():  # of another plan, whose fit was killed
        remove_folder(job.run.tuning)
    told = f"fitting integers to the plan: {calibration.fit.size} tokens, layer after layer"
    fit.run(jobs=job.jobs, progress=job.stages.visit(TUNING, told))
    remove_folder(job.run.tuning)
    told = f"whole models with integers fitted to the plan and without: {calibration.tokens.size} calibration tokens"
    found = judged(
        fit, Variant(plan.formats, plan.memory, shipped), calibration.tokens, job.stages.visit(JUDGING, told)
    )
    return replace(job, rounder=found.rounder), plan.tuned(found.record)
