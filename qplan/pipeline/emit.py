"""From a sensitivity table to a proved MNN model."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from qplan.artifact import read_json, write_json
from qplan.calibration import CalibrationSet, load_text, tokenise
from qplan.cost.file_bytes import FixedBytes
from qplan.errors import InputError, StaleArtifactError
from qplan.formats import INT8
from qplan.mnn.exporter import export_skeleton
from qplan.mnn.exporter_source import find_exporter
from qplan.mnn.quant_config import export_command, make_quant_config
from qplan.mnn.runtime import RuntimeConfig
from qplan.mnn.skeleton import Skeleton, predict_files
from qplan.model.load import LoadedModel, load_model
from qplan.pipeline.choose import PlanRules, choose_plan, with_price_of_nearest
from qplan.pipeline.fold import fold_of, load_original
from qplan.pipeline.prove import Workshop, gate, prove
from qplan.pipeline.rounder import run_rounder
from qplan.pipeline.runs import Run
from qplan.planner.plan import Plan
from qplan.report import Provenance, write_report
from qplan.sensitivity.rounding import Rounder
from qplan.sensitivity.table import SensitivityTable
from qplan.verify.measure import Trial
from qplan.verify.record import Verification
from qplan.verify.reference import reference_logits

Say = Callable[[str], None]
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class EmitOptions:
    """What ``qplan emit`` was asked for."""

    budget: str = "int8"
    rules: PlanRules = field(default_factory=PlanRules)
    text: str | None = None
    """What the built model is judged on; None for held-out windows of the calibration text."""
    tokens: int = 2048
    """At most this many tokens of it."""
    build: bool = True
    llmexport: Path | None = None
    threads: int = 1


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
class _Judges:
    """Held-out tokens and where they come from."""

    rows: NDArray[np.int64]
    text: str
    sha256: str


def run_emit(options: EmitOptions, run: Run, say: Say, progress: Progress, command: str) -> Emitted:
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
        StaleArtifactError: the model is not the one that was analysed.
        ToolError: exporter, converter or engine failed.
        VerificationError: the export of this architecture is wrong.
    """
    table = SensitivityTable.read(run.sensitivity)
    calibration = CalibrationSet.read(run.calibration)
    record = fold_of(run, table.model)
    source = table.model.source if record is None else str(run.folded)
    say(f"loading {source}")
    loaded = load_model(source)
    if loaded.card.sha256 != table.model.sha256:
        msg = f"{source} has changed since {run.sensitivity} was made; run 'qplan analyze' with --restart"
        raise StaleArtifactError(msg)
    original = loaded if record is None else load_original(record)
    judges = _judges(options, calibration, loaded)
    skeleton = _skeleton(run.skeleton, loaded, options, say)
    rounder = run_rounder(run, loaded, calibration, table.conditions.rounding)
    folder = run.budget(options.budget)
    with ExitStack() as stack:
        shop = None
        if options.build:
            say(f"FP32 reference on {judges.rows.size} tokens: {judges.text}")
            reference = stack.enter_context(reference_logits(loaded, judges.rows, progress))
            trial = Trial(reference, threads=options.threads)
            shop = Workshop(loaded, skeleton, trial, judges.text, judges.sha256, run.baselines, say)
            uniform = shop
            if record is not None:
                # what MNN's exporter makes of the model knows nothing of folds
                uniform = replace(shop, loaded=original, skeleton=_skeleton(run.unfolded, original, options, say))
        first = gate(shop) if shop is not None else None
        plan = choose_plan(
            table,
            options.budget,
            fixed_bytes(skeleton),
            options.rules,
            rounder=rounder,
            nearest=Rounder(original),
            heldout=calibration.heldout,
            say=say,
        )
        # llmexport knows no factor of the embedding: it can only make the folded model where there is none
        exported = loaded if loaded.embedding_scale is None else original
        plan = with_price_of_nearest(plan, rounder, Rounder(exported), table.goal, calibration.heldout)
        plan_path = folder / "plan.json"
        plan.write(plan_path)
        exporter = find_exporter(options.llmexport)
        formats = {tensor.op_name: tensor.format for tensor in plan.tensors}
        config = make_quant_config(skeleton, formats, exporter)
        config_path = folder / "quant_config.json"
        config.write(config_path)
        llmexport = export_command(exporter, exported.folder, folder / "llmexport", config_path, formats)
        verification = None
        if shop is not None and first is not None:
            say("plan: building")
            shop.build(plan.formats, folder / "model", RuntimeConfig(plan.memory, threads=4), rounder)
            verification = prove(shop, plan, plan_path, folder / "model", first=first, rounder=rounder, uniform=uniform)
            verification.write(folder / "verification.json")
    problems = config.problems
    if exported is not loaded:
        problems += (
            f"llmexport is given {exported.folder.name} as it is: it cannot undo a folded tied head's lookups",
        )
    write_report(folder, table, plan, verification, Provenance(commands=(command, llmexport)))
    return Emitted(folder, plan, verification, llmexport, problems)


_GRAPH_SLACK_BYTES = 64
"""Alignment, and tables that ops share: built graphs were 20 to 52 bytes above the sum of their parts."""


def fixed_bytes(skeleton: Skeleton) -> FixedBytes:
    """What ships whatever the plan; the graph as large as it gets, with every linear an integer.

    An fp16 op takes less, so no plan's graph is larger than a uniform integer model's.
    """
    files = predict_files(skeleton, {op.name: INT8 for op in skeleton.ops})
    graph = files.graph + _GRAPH_SLACK_BYTES
    return FixedBytes(skeleton.fixed_bytes, skeleton.embedding_bytes, graph, exact=True)


def _judges(options: EmitOptions, calibration: CalibrationSet, loaded: LoadedModel) -> _Judges:
    rows = max(1, options.tokens // calibration.seq_len)
    if options.tokens < calibration.seq_len:
        msg = f"--tokens {options.tokens} is below one sequence of {calibration.seq_len} tokens; raise it"
        raise InputError(msg)
    if options.text is None:
        heldout = calibration.heldout[:rows]
        return _Judges(heldout, f"held-out windows of {calibration.source}", calibration.heldout_sha256)
    # one window more than needed is held out by tokenise and left alone here
    text = load_text(options.text, loaded.tokenizer)
    judged = tokenise(
        text,
        loaded.tokenizer,
        samples=rows,
        seq_len=calibration.seq_len,
        seed=0,
        context=loaded.card.context,
        vocabulary=loaded.card.vocabulary,
    )
    return _Judges(judged.tokens, text.source, judged.sha256)


def _skeleton(folder: Path, loaded: LoadedModel, options: EmitOptions, say: Say) -> Skeleton:
    """The exported graph of this very model by this very exporter: the one in the run folder, or a new one."""
    exporter = find_exporter(options.llmexport).version
    inputs = {"model": loaded.card.sha256, "exporter": exporter}
    record = folder.with_suffix(".json")
    if folder.is_dir() and record.is_file() and read_json(record, "qplan-skeleton", 1)["inputs"] == inputs:
        return Skeleton.open(folder)
    record.unlink(missing_ok=True)
    say(f"exporting the graph with {exporter}")
    scale = None if loaded.embedding_scale is None else loaded.embedding_scale.cpu().numpy()
    skeleton = export_skeleton(loaded.folder, folder, llmexport=options.llmexport, replace=True, input_scale=scale)
    write_json(record, "qplan-skeleton", 1, inputs, {})
    return skeleton
