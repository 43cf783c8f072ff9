"""An emit that builds nothing and measures nothing: the plan of single losses and its configs, without the model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from qplan.choosing.option import as_shipped, with_note_on_losses
from qplan.choosing.planned import PlannedOn, edited_plan, engine_of
from qplan.choosing.retarget import retarget_table
from qplan.choosing.solving import with_notes_of
from qplan.formats import applies, garbled
from qplan.jobs.checks import check_emit, for_engine_of, given_plan
from qplan.jobs.emitted import Emitted, folder_of, ops_of, say_if_moved, write_config
from qplan.jobs.options import EmitOptions, PlanOptions
from qplan.jobs.plan import Ground, solve_plan
from qplan.jobs.report import report_plan
from qplan.mnn.build.exporter_source import Exporter, find_exporter
from qplan.mnn.build.quant_config import QuantConfig, make_quant_config, quant_config_of
from qplan.mnn.build.skeleton import Skeleton
from qplan.model.source import EMBEDDING_SCALE_FILE, fetch
from qplan.run.fold import fold_of
from qplan.run.folder import RunFolder
from qplan.run.lock import alone_in_run
from qplan.run.plan import Plan
from qplan.run.plan_folder import PlanFolder
from qplan.run.provenance import Provenance
from qplan.run.skeleton_record import SkeletonRecord
from qplan.run.table import SensitivityTable
from qplan.run.took import Took
from qplan.settings import Say


@alone_in_run("emit")
def run_plan_only(options: EmitOptions, run: RunFolder, say: Say, command: str) -> Emitted:
    """Make the plan, or take the given one, and write it with its configs and a report on predictions.

    Args:
        options: options of the emit, which builds nothing.
        run: a finished analysis.
        say: called with a line about each step.
        command: the command line, for the report.

    Raises:
        InputError: a pattern cannot be used, a file does not exist, or a KV cache would have to be measured.
        InfeasibleError: no plan fits.
        StaleArtifactError: a given plan was made from other losses.
    """
    check_emit(options, run)
    given = given_plan(options, run)
    if given is not None:
        options = for_engine_of(given, options)
        say_if_moved(given, options, say)
    analysis = SensitivityTable.read(run.sensitivity)
    table = retarget_table(analysis, options.target)
    ground = Ground.of(options, run, table)
    plan = _made(options, ground, say) if given is None else _given(given, options, ground)
    engine = None if options.engine is None else str(options.target.engine)
    plan = replace(plan, sensitivity_sha256=table.sha256, engine=engine)
    files = PlanFolder(folder_of(given, options.wanted.label, run, engine))
    plan.write(files.plan)
    exporter = find_exporter(options.llmexport)
    model, unfolded = _exported(run, table)
    exportable = write_config(
        _config(plan, options, ground, exporter),
        plan,
        files,
        exporter=exporter,
        model=model,
        unfolded=unfolded,
        target=options.target,
        table=table,
    )
    made = PlannedOn(plan, files.plan, run, engine_of(plan), table, analysis.sha256)
    analyzed = Took.read(run.took)
    provenance = Provenance(commands=(command, exportable.command), took=() if analyzed is None else (analyzed,))
    report_plan(made, None, provenance=provenance, language=options.language, say=say)
    return Emitted(files.folder, plan, None, exportable.command, exportable.problems)


def _made(options: EmitOptions, ground: Ground, say: Say) -> Plan:
    """The plan of single losses."""
    asked = PlanOptions(wanted=options.wanted, dynamic_option=options.dynamic_option, engine=options.engine)
    plan, _ = solve_plan(asked, ground, say)
    return with_note_on_losses(plan, ground.table)


def _given(given: PlannedOn, options: EmitOptions, ground: Ground) -> Plan:
    """The given plan, counted again, with the option for activations that is asked for."""
    table = ground.table
    plan = edited_plan(given, table, options.target, ground.fixed)
    if plan.kv is not None:
        from qplan.jobs.cache import with_cache_recounted  # noqa: PLC0415 - transformers takes seconds

        plan = with_cache_recounted(plan, table, options.target.engine)
    option = plan.dynamic_option if options.dynamic_option is None else options.dynamic_option
    names = garbled(plan.formats) if option and applies(plan.memory, plan.formats) else []
    if names:
        from qplan.choosing.activations import without_block_scales  # noqa: PLC0415 - torch takes seconds

        plan = without_block_scales(plan, names)
    else:
        plan = replace(plan, dynamic_option=option)
    plan = as_shipped(with_notes_of(plan, table, given.rules), table)
    return with_note_on_losses(plan, table)


def _exported(run: RunFolder, table: SensitivityTable) -> tuple[Path, bool]:
    """The Hugging Face folder that llmexport is given, and whether that is the model before folding."""
    record = fold_of(run, table.model)
    if record is None:
        return fetch(table.model.source), False
    if (run.folded / EMBEDDING_SCALE_FILE).is_file():  # llmexport knows no such thing
        return fetch(record.original), True
    return fetch(str(run.folded)), False


def _config(plan: Plan, options: EmitOptions, ground: Ground, exporter: Exporter) -> QuantConfig:
    """The plan as llmexport reads it, with its names held against the graph where the run keeps that."""
    card = ground.table.model
    folder, record = ground.run.skeleton_for(c4=options.target.c4)
    kept = SkeletonRecord.kept(record) if folder.is_dir() else None
    if kept is not None and kept.model == card.sha256:
        return make_quant_config(Skeleton.open(folder), ops_of(plan), exporter)
    widths = {spec.op_name: spec.in_features for spec in card.tensors}
    return quant_config_of(widths, ops_of(plan), exporter)
