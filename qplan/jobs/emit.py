"""From a sensitivity table to a proved MNN model."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from qplan.calibration import load_text, tokenize
from qplan.choosing.activations import BlockGain, with_measured_option, with_note_on_losses
from qplan.choosing.planned import PlannedOn, edited_plan, engine_of, planned_on
from qplan.choosing.retarget import retarget_table
from qplan.choosing.sizes import fixed_bytes
from qplan.errors import InputError
from qplan.folding.analyzed import load_analyzed
from qplan.jobs.emit_job import EmitJob, EmitOptions, planned
from qplan.jobs.report import report_plan
from qplan.jobs.skeletons import run_skeleton
from qplan.mnn.build.exporter_source import find_exporter
from qplan.mnn.build.quant_config import export_command, make_quant_config
from qplan.mnn.build.writer import set_runtime
from qplan.mnn.engines import EngineVersion
from qplan.mnn.runtime import RuntimeConfig
from qplan.model.load import LoadedModel
from qplan.quantize.run_rounder import run_rounder
from qplan.run.calibration import CalibrationSet
from qplan.run.folder import RunFolder
from qplan.run.plan import Plan
from qplan.run.plan_folder import PlanFolder
from qplan.run.plans import FoundPlan
from qplan.run.provenance import Provenance
from qplan.run.table import SensitivityTable
from qplan.run.verification import Check, Verification
from qplan.settings import Progress, Say
from qplan.verify.checks import engine_checks
from qplan.verify.measure import Trial, speeds_by_turns
from qplan.verify.prove import BuildBench, gate, prove
from qplan.verify.reference import reference_logits, stored_logits


@dataclass(frozen=True)
class Emitted:
    """What an emit left."""

    folder: Path
    plan: Plan
    verification: Verification | None
    export_command: str
    """llmexport's command line for the same plan."""
    export_problems: tuple[str, ...]
    """What that exporter cannot make of it."""


@dataclass(frozen=True)
class _HeldOut:
    """Held-out tokens and where they come from."""

    rows: NDArray[np.int64]
    text: str
    sha256: str


def run_emit(options: EmitOptions, run: RunFolder, say: Say, progress: Progress, command: str) -> Emitted:
    """Plan, write the configs, build, prove, report.

    Args:
        options: what was asked for.
        run: a finished analysis.
        say: told what is being done.
        progress: draws the reference passes.
        command: the command line, for the report.

    Raises:
        InputError: a budget, pattern or text that cannot be used.
        InfeasibleError: no plan fits the budget.
        StaleArtifactError: the model is not the one that was analyzed.
        ToolError: exporter, converter or engine failed.
        VerificationError: the export of this architecture is wrong.
    """
    losses, given = SensitivityTable.read(run.sensitivity), None
    if options.plan is not None:
        given = planned_on(FoundPlan(options.plan, Plan.read(options.plan)), run, losses)
        options = _for_engine_of(given, options, say)
    target = options.target
    table = retarget_table(losses, target)
    if options.dynamic_option == 2 and table.goal != "low":
        msg = f"--dynamic-option 2 changes nothing under memory {table.goal}, which {run.folder} is for: leave it out"
        raise InputError(msg)
    calibration = CalibrationSet.read(run.calibration)
    model = load_analyzed(run, table.model, say)
    loaded = model.loaded
    judges = _held_out(options, calibration, loaded)
    skeleton = run_skeleton(run, loaded, options.llmexport, say, c4=target.c4)
    rounder = run_rounder(run, loaded, calibration, table.conditions.rounding)
    job = EmitJob(options, run, table, model, skeleton, rounder, calibration.heldout, say, given)
    edited = None if given is None else edited_plan(given, table, target, fixed_bytes(skeleton))
    with ExitStack() as stack:
        bench = None
        if options.build:
            say(f"FP32 reference on {judges.rows.size} tokens: {judges.text}")
            reference = stack.enter_context(reference_logits(loaded, judges.rows, progress))
            trial = Trial(reference, threads=options.threads)
            baselines = run.baselines_for(None if options.engine is None else str(target.engine))
            bench = BuildBench(loaded, skeleton, trial, judges.text, judges.sha256, baselines, say, target)
        first = gate(bench) if bench is not None else None
        plan, gain = planned(job, edited)
        plan.write(job.plan_path)
        exporter = find_exporter(options.llmexport)
        formats = {tensor.op_name: tensor.format for tensor in plan.tensors}
        config = make_quant_config(skeleton, formats, exporter)
        files = PlanFolder(job.folder)
        config_path = files.quant_config
        config.write(config_path)
        llmexport = export_command(exporter, job.exported.folder, files.llmexport, config_path, formats)
        verification = None
        if bench is not None and first is not None:
            plan, verification = _prove(job, bench, first, plan, gain)
    provenance = Provenance(commands=(command, llmexport))
    made = PlannedOn(plan, job.plan_path, run, engine_of(plan), table, losses.sha256)
    report_plan(made, verification, provenance=provenance, language=options.language, say=say)
    problems = config.problems if target.c4 else (*config.problems, _WITHOUT_C4.format(target.engine))
    if job.exported is not loaded:
        problems += (
            f"llmexport is given {job.exported.folder.name} as it is: it cannot undo a folded tied head's lookups",
        )
    return Emitted(job.folder, plan, verification, llmexport, problems)


def _prove(
    job: EmitJob, bench: BuildBench, first: Check, plan: Plan, gain: BlockGain | None
) -> tuple[Plan, Verification]:
    """Build and verify the plan; it comes back with its ``dynamic_option`` decided by the built model's speed."""
    model = PlanFolder(job.folder).model
    bench.say("plan: building")
    bench.build(plan.formats, model, _runtime(plan), job.rounder)
    speeds = None
    if gain is not None:
        bench.say("plan: speed with a scale per token, and per block of the activations")
        speeds = speeds_by_turns(model, bench.trial, bench.loaded.card.context)
        plan = with_measured_option(plan, gain, speeds[2].decode_tokens_per_s / speeds[0].decode_tokens_per_s)
        set_runtime(model, _runtime(plan))
        plan = with_note_on_losses(plan, job.table.conditions.dynamic_option)
        plan.write(job.plan_path)
    verification = prove(
        bench,
        plan,
        job.plan_path,
        model,
        first=first,
        rounder=job.rounder,
        speeds=speeds,
        uniform=replace(bench, loaded=job.model.original, skeleton=job.uniform_skeleton),
    )
    if job.options.engine is not None:
        expected = stored_logits(job.rounder, plan.formats, bench.token_ids)
        more = engine_checks(model, job.options.target, bench.token_ids, expected)
        verification = replace(verification, checks=(*verification.checks, *more))
    verification.write(PlanFolder(job.folder).verification)
    return plan, verification


def _for_engine_of(given: PlannedOn, options: EmitOptions, say: Say) -> EmitOptions:
    """Options that build a given plan for the engine that it was made for, unless they name one."""
    if options.engine is None:
        return replace(options, engine=given.plan.engine)
    made_for = EngineVersion.installed() if given.engine is None else given.engine.engine
    if options.target.engine != made_for:
        say(f"{given.path} was made for engine {made_for}: its formats are taken as {options.target.engine} reads them")
    return options


def _runtime(plan: Plan) -> RuntimeConfig:
    return RuntimeConfig(plan.memory, threads=4, dynamic_option=plan.dynamic_option)


_WITHOUT_C4 = (
    "llmexport fuses attention for packed channels, which engine {} crashes on; the built model is free of it, for "
    "llmexport take an MNN checkout and --disable_transformer_c4"
)


def _held_out(options: EmitOptions, calibration: CalibrationSet, loaded: LoadedModel) -> _HeldOut:
    rows = max(1, options.tokens // calibration.seq_len)
    if options.tokens < calibration.seq_len:
        msg = f"--tokens {options.tokens} is below one sequence of {calibration.seq_len} tokens; raise it"
        raise InputError(msg)
    if options.text is None:
        heldout = calibration.heldout[:rows]
        return _HeldOut(heldout, f"held-out windows of {calibration.source}", calibration.heldout_sha256)
    # one window more than needed is held out by tokenize and left alone here
    text = load_text(options.text, loaded.tokenizer)
    judged = tokenize(
        text,
        loaded.tokenizer,
        samples=rows,
        seq_len=calibration.seq_len,
        seed=0,
        context=loaded.card.context,
        vocabulary=loaded.card.vocabulary,
    )
    return _HeldOut(judged.tokens, text.source, judged.sha256)
