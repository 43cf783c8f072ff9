"""From a sensitivity table to a proved MNN model."""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from qplan.calibration import load_text, tokenize
from qplan.choosing.activations import BlockGain
from qplan.choosing.option import as_shipped, with_note_on_losses
from qplan.choosing.planned import PlannedOn, edited_plan, engine_of
from qplan.choosing.retarget import retarget_table
from qplan.choosing.sizes import fixed_bytes
from qplan.cost.arm import proofs_at_once
from qplan.cost.emit import BUILDING, CACHING, EXPORTING, GATE, LOADING, PROVING, PROVING_ARM, REFERENCE, REPORTING
from qplan.cost.free import most_memory
from qplan.errors import VerificationError
from qplan.folding.analyzed import load_analyzed, weights_memory
from qplan.jobs.cache import CacheBench, cache_bench, cache_menu, context_of, with_cache_recounted
from qplan.jobs.checks import check_emit, for_engine_of, given_plan
from qplan.jobs.emit_job import EmitJob, planned
from qplan.jobs.emitted import Emitted, Exportable, ops_of, say_if_moved, write_config
from qplan.jobs.expect_emit import Emission, expect_emit
from qplan.jobs.options import EmitOptions
from qplan.jobs.plan_only import run_plan_only
from qplan.jobs.report import report_plan
from qplan.jobs.skeletons import run_skeleton
from qplan.jobs.stages import Stages
from qplan.jobs.tune import tuned
from qplan.mnn.arm.home import arm_is_there, require_arm
from qplan.mnn.arm.processors import find_processor
from qplan.mnn.build.exporter_source import find_exporter
from qplan.mnn.build.quant_config import make_quant_config
from qplan.mnn.build.writer import set_runtime
from qplan.mnn.runtime import RuntimeConfig
from qplan.model.load import LoadedModel
from qplan.model.source import local_folder
from qplan.notes import Note, note, text_note
from qplan.planner.rules import target_of
from qplan.rounding.round_all import default_jobs
from qplan.rounding.run_rounder import run_rounder
from qplan.run.calibration import CalibrationSet
from qplan.run.folder import RunFolder
from qplan.run.lock import alone_in_run
from qplan.run.plan import Plan
from qplan.run.plan_folder import PlanFolder
from qplan.run.provenance import Provenance
from qplan.run.table import SensitivityTable
from qplan.run.took import Took
from qplan.run.verification import Check, Verification
from qplan.sensitivity.kept_logits import kept_logits
from qplan.settings import Progress, Say
from qplan.spread.nodes import workers_at
from qplan.spread.work import Workers
from qplan.verify.arm import ArmTrial, not_proved, prove_on_arm
from qplan.verify.arm_emulation import predicted_on_arm
from qplan.verify.bench import BuildBench
from qplan.verify.checks import engine_checks, folder_check
from qplan.verify.engine_memory import EngineMemory
from qplan.verify.measure import Trial
from qplan.verify.option_by_speed import option_by_speed
from qplan.verify.parity import timed_by_turns
from qplan.verify.prove import gate, prove
from qplan.verify.reference import stored_logits
from qplan.verify.samples import sample_texts
from qplan.verify.uniform_builds import uniform_builds

PLANNING_TOKENS = 2048
"""Least number of held-out tokens that plans are measured on, where there are so many."""

PLANNING_WORK = 4e12
"""Weights times tokens up to which as many are taken whatever the analysis took: half an hour for the whole models that
an emit measures. A larger model is measured on fewer."""

SHIPPED_THREADS = 4
"""Engine threads in the settings that a built model ships with; measurements use `EmitOptions.threads`."""


@dataclass(frozen=True)
class _HeldOut:
    """Tokens that the built model is measured on, and their origin."""

    rows: NDArray[np.int64]
    text: Note
    sha256: str


@alone_in_run("emit")
def run_emit(options: EmitOptions, run: RunFolder, say: Say, progress: Progress, command: str) -> Emitted:
    """Plan, write the configs, build, prove and report.

    Args:
        options: options of the emit.
        run: a finished analysis.
        say: called with a line about each step.
        progress: called with the work done and all work that is expected.
        command: the command line, for the report.

    Raises:
        InputError: a pattern or text cannot be used, or a file does not exist.
        InfeasibleError: no plan fits the budget.
        StaleArtifactError: the model is not the one that was analyzed.
        ToolError: exporter, converter or engine failed.
        VerificationError: the export of this architecture is wrong.
    """
    if not options.loads_model:
        return run_plan_only(options, run, say, command)
    check_emit(options, run)
    model = local_folder(SensitivityTable.read(run.sensitivity).model.source)
    with workers_at(options.ray, run, model, say) as workers:
        run = run if workers is None else run.from_anywhere()
        return _emit(options, run, say, progress, command, workers=workers)


def emission_of(options: EmitOptions, run: RunFolder) -> Emission:
    """What an emit is about, from its options and the run."""
    given = given_plan(options, run)
    if given is not None:
        options = for_engine_of(given, options)
    calibration = CalibrationSet.read(run.calibration)
    judged = options.tokens // calibration.seq_len
    judged = judged if options.text is not None else min(judged, len(calibration.heldout))
    table = retarget_table(SensitivityTable.read(run.sensitivity), options.target)
    return Emission(
        options=options,
        run=run,
        table=table,
        calibration=calibration,
        given=given,
        planning_rows=len(planning_rows(calibration, table.model.parameters)),
        judged_rows=judged,
        decode_rows=_decode_rows(judged),
    )


def _emit(
    options: EmitOptions, run: RunFolder, say: Say, progress: Progress, command: str, *, workers: Workers | None
) -> Emitted:
    begun = time.monotonic()
    emission = emission_of(options, run)
    options, given, table, calibration = emission.options, emission.given, emission.table, emission.calibration
    if given is not None:
        say_if_moved(given, options, say)
    if emission.untrained:
        say(emission.untrained)
    stages = _stages(emission, say, progress)
    most = weights_memory(options.max_memory_bytes)
    if options.max_memory_bytes is not None:  # the engine too gets no more than there is
        options = replace(options, max_memory_bytes=most_memory(options.max_memory_bytes))
    model = load_analyzed(
        run, table.model, stages.teller(LOADING), most_bytes=most, stream_original=emission.held < len(emission.folders)
    )
    judged = _held_out(options, calibration, model.loaded, say)
    skeleton = run_skeleton(
        run,
        model.loaded,
        options.llmexport,
        stages.teller(EXPORTING),
        c4=options.target.c4,
        max_memory_bytes=options.max_memory_bytes,
    )
    rounder = run_rounder(
        run,
        model.loaded,
        calibration,
        table.conditions.rounding,
        within_int16=(options.wanted.rules.target if given is None else target_of(given.plan)).adds_in_int16,
        workers=workers,
    )
    with ExitStack() as stack:
        job = EmitJob(
            options=options,
            run=run,
            table=table,
            model=model,
            skeleton=skeleton,
            rounder=rounder,
            heldout=planning_rows(calibration, table.model.parameters),
            say=say,
            given=given,
            open=stack,
            stages=stages,
            jobs=default_jobs(),
            schedule=emission.training,
            caches=cache_menu(options.wanted, table, options.target.engine),
            begun_s=begun,
        )
        emitted = _plan_and_build(job, judged, command) if options.build else _plan_only(job, command)
    stages.end()
    return emitted


def _stages(emission: Emission, say: Say, progress: Progress) -> Stages:
    """What lies ahead, told where it takes long.

    Raises:
        InputError: this machine has too little memory.
        StorageError: it has too little room on a disk.
    """
    outlook = expect_emit(emission)
    outlook.check()
    if outlook.is_long:
        outlook.tell(say)
    return Stages(outlook.expected, say, progress)


def planning_rows(calibration: CalibrationSet, weights: int) -> NDArray[np.int64]:
    """Held-out tokens that whole models are measured on while a plan is chosen, ``[rows, seq_len]``.

    Half as many as the analysis took, evenly spread, but no fewer than `PLANNING_TOKENS` if there are so many and
    `PLANNING_WORK` allows.

    Args:
        calibration: of the analysis.
        weights: of the model.
    """
    rows, length = calibration.heldout, calibration.seq_len
    least = min(PLANNING_TOKENS, int(PLANNING_WORK / weights))
    count = max(2, max(least, calibration.tokens.size // 2) // length)
    if count >= len(rows):
        return rows
    spread: NDArray[np.int64] = rows[np.linspace(0, len(rows) - 1, count).round().astype(int)]
    return spread


def _plan_only(job: EmitJob, command: str) -> Emitted:
    """Make the plan and its configs, with a report on predictions only."""
    plan, _ = planned(job, _given(job))
    exportable = _write_plan(job, plan)
    return _reported(job, plan, None, exportable, command)


def _plan_and_build(job: EmitJob, judged: _HeldOut, command: str) -> Emitted:
    """Make the plan, its configs and the model, and measure the model on the engine."""
    options, loaded, target = job.options, job.model.loaded, job.options.target
    given = _given(job)
    told = f"FP32 reference on {judged.rows.size:,} tokens: {judged.text}"
    with kept_logits(loaded, judged.rows, job.stages.visit(REFERENCE, told)) as reference:
        trial = Trial(reference, threads=options.threads, decode_rows=_decode_rows(len(judged.rows)))
        bench = BuildBench(
            loaded=loaded,
            skeleton=job.skeleton,
            trial=trial,
            text=judged.text,
            text_sha256=judged.sha256,
            baselines=job.run.baselines_for(job.engine),
            say=job.say,
            target=target,
            memory=_engine_memory(job, trial),
        )
        first = gate(replace(bench, say=job.stages.teller(GATE)))
        tokens = context_of(options.wanted, given)
        cached = replace(bench, say=job.stages.teller(CACHING))
        caches = job.open.enter_context(cache_bench(cached, judged.rows, tokens)) if job.open is not None else None
        if caches is not None:
            job = replace(job, measure_cache=caches.measure)
        plan, gain = planned(job, given)
        if bench.memory is not None:
            bench.memory.check_runs(plan.formats)
            plan = plan.noted(*bench.memory.left_out(plan.formats, unfolded=job.model.original.card))
        job, plan = tuned(job, plan, plan.dynamic_option if gain is None else 2)
        exportable = _write_plan(job, plan)
        plan, verification = _prove(job, bench, first, plan, gain, caches=caches)
    return _reported(job, plan, verification, exportable, command)


def _decode_rows(rows: int) -> int:
    """How many of the rows are also run token by token, which takes an engine longest: no more than half of a few."""
    return max(1, min(Trial.decode_rows, rows // 2))


def _engine_memory(job: EmitJob, trial: Trial) -> EngineMemory | None:
    """What the engine may take beside this process; None for no limit."""
    limit = job.options.max_memory_bytes
    if limit is None:
        return None
    tokens = max(trial.reference.rows.shape[1], trial.prompt_tokens + trial.decode_tokens)
    return EngineMemory.beside_this_process(job.model.loaded.card, tokens, limit)


def _given(job: EmitJob) -> Plan | None:
    """The plan that the user gave, recomputed for this build; None if one is to be made."""
    if job.given is None:
        return None
    plan = edited_plan(job.given, job.table, job.options.target, fixed_bytes(job.skeleton, job.table.model)).untuned()
    return with_cache_recounted(plan, job.table, job.options.target.engine)


def _write_plan(job: EmitJob, plan: Plan) -> Exportable:
    """Write ``plan.json`` and ``quant_config.json``."""
    plan.write(job.plan_path)
    exporter = find_exporter(job.options.llmexport)
    config = make_quant_config(job.skeleton, ops_of(plan), exporter)
    return write_config(
        config,
        plan,
        PlanFolder(job.folder),
        exporter=exporter,
        model=job.exported.folder,
        unfolded=job.exported is not job.model.loaded,
        target=job.options.target,
        table=job.table,
    )


def _reported(
    job: EmitJob, plan: Plan, verification: Verification | None, exportable: Exportable, command: str
) -> Emitted:
    """Write the report and return the result."""
    analysis = SensitivityTable.read(job.run.sensitivity)
    made = PlannedOn(plan, job.plan_path, job.run, engine_of(plan), job.table, analysis.sha256)
    own, analyzed = Took.since(job.begun_s, "emit"), Took.read(job.run.took)
    provenance = Provenance(commands=(command, exportable.command), took=tuple(filter(None, (analyzed, own))))
    report_plan(
        made, verification, provenance=provenance, language=job.options.language, say=job.stages.teller(REPORTING)
    )
    return Emitted(job.folder, plan, verification, exportable.command, exportable.problems)


def _prove(
    job: EmitJob,
    bench: BuildBench,
    first: tuple[Check, ...],
    plan: Plan,
    gain: BlockGain | None,
    *,
    caches: CacheBench | None,
) -> tuple[Plan, Verification]:
    """Build and verify the plan. If ``gain`` is given, the built model's speed decides its ``dynamic_option``."""
    model = PlanFolder(job.folder).model
    job.stages.visit(BUILDING)
    bench.build(plan.formats, model, _runtime(plan), job.rounder)
    sound = folder_check(model, bench.target.engine)
    if not sound.passed:
        msg = f"{model} was built, and {sound.promise} finds in it: {sound.found}. It is left there to look at"
        raise VerificationError(msg)
    bench = replace(bench, progress=job.stages.visit(PROVING, "proof on the engine, beside uniform models"))
    uniform = replace(bench, loaded=job.model.original, skeleton=job.uniform_skeleton, hqq=job.hqq)
    with uniform_builds(uniform) as builds:
        speeds = timed_by_turns(bench, plan, model, builds)
        if gain is not None:
            plan = option_by_speed(plan, gain, speeds)
            set_runtime(model, _runtime(plan))
            plan = with_note_on_losses(as_shipped(plan, job.table), job.table)
            plan.write(job.plan_path)
        samples = sample_texts(bench, plan, model, builds)
        verification = prove(
            bench,
            plan,
            job.plan_path,
            model,
            first=(*first, sound),
            rounder=job.rounder,
            speeds=speeds,
            builds=builds,
            rivals=job.options.rivals,
        )
    verification = replace(verification, samples=samples)
    if job.options.engine is not None:
        expected = stored_logits(job.rounder, plan.formats, bench.token_ids)
        more = engine_checks(model, job.options.target, bench.token_ids, expected)
        verification = replace(verification, checks=(*verification.checks, *more))
    verification = _on_arm(job, bench, plan, model, verification)
    if caches is not None and plan.kv is not None:
        verification = caches.proved(plan, model, _runtime(plan), verification)
    verification.write(PlanFolder(job.folder).verification)
    return plan, verification


def _on_arm(job: EmitJob, bench: BuildBench, plan: Plan, model: Path, verification: Verification) -> Verification:
    """Add the proof on emulated ARM processors, or that there should be one."""
    options = job.options
    if not options.prove:
        return replace(verification, notes=(*verification.notes, *not_proved(plan.target, added=arm_is_there())))
    engine = require_arm(options.prove, "--prove")
    trial = ArmTrial(
        folder=model,
        formats=plan.formats,
        runtime=RuntimeConfig.of(plan),
        card=bench.loaded.card,
        reference=bench.trial.reference,
    )
    processors = ", ".join(options.prove)
    progress = job.stages.visit(PROVING_ARM, f"what torch computes with the arithmetic of {processors}")
    predicted = predicted_on_arm(trial, plan, job.rounder, options.prove, progress)
    proof = prove_on_arm(
        replace(trial, predicted=predicted),
        {name: engine.host(find_processor(name)) for name in options.prove},
        jobs=1 if options.max_memory_bytes is not None else proofs_at_once(len(options.prove), job.jobs),
        progress=job.stages.visit(PROVING_ARM, f"proof on {processors}, emulated"),
    )
    return replace(verification, arm=proof.runs, checks=(*verification.checks, *proof.checks))


def _runtime(plan: Plan) -> RuntimeConfig:
    return RuntimeConfig.of(plan, SHIPPED_THREADS)


def _held_out(options: EmitOptions, calibration: CalibrationSet, loaded: LoadedModel, say: Say) -> _HeldOut:
    rows = options.tokens // calibration.seq_len
    if options.text is None:
        heldout = calibration.heldout[:rows]
        return _HeldOut(heldout, note("held-out-windows", source=calibration.source), calibration.heldout_sha256)
    # tokenize holds out one more window, which is not used here
    text = load_text(options.text, loaded.tokenizer, say)
    judged = tokenize(
        text,
        loaded.tokenizer,
        samples=rows,
        seq_len=calibration.seq_len,
        seed=0,
        context=loaded.card.context,
        vocabulary=loaded.card.vocabulary,
    )
    return _HeldOut(judged.tokens, text_note(text.source), judged.sha256)
