"""``qplan quantize``: a model in, an MNN folder out."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Literal

import typer

from qplan.choosing.request import PlanRequest
from qplan.cli import completion, console, panels
from qplan.cli.console import answer, say, work_bar
from qplan.cli.documents import analysis_document, emit_document
from qplan.cli.emit import check_promises, command_line, show_plan
from qplan.cli.limits import TargetOption
from qplan.cli.modes import with_modes
from qplan.cli.report import Lang
from qplan.cli.rules import MaxMemory, memory_limit
from qplan.cli.tidy import tidied
from qplan.cost.target import DEFAULT_TARGET
from qplan.jobs.options import AnalyzeOptions, EmitOptions
from qplan.planner.budget import parse_budgets
from qplan.planner.rules import Rules
from qplan.run.folder import RunFolder
from qplan.run.plan_folder import PlanFolder
from qplan.settings import Effort

BUDGET = "int4"
"""Default of ``--budget``: what people who quantize for a phone export today."""


@with_modes("quantize")
def command(
    model: Annotated[
        str,
        typer.Argument(help="Local folder or hub id of a causal language model.", autocompletion=completion.models),
    ],
    out: Annotated[
        Path | None,
        typer.Argument(
            help="Folder of the MNN model; an earlier one of qplan's is replaced.",
            show_default="MODEL-BUDGET-MNN, here",
        ),
    ] = None,
    budget: Annotated[
        str,
        typer.Option(
            metavar="BUDGET",
            help="No more than a uniform export takes (`int4`, `int8`), or files of `4.5bpw`, `300MB`, `60%` of fp16.",
            autocompletion=completion.budgets,
            rich_help_panel=panels.LIMITS,
        ),
    ] = BUDGET,
    target: TargetOption = DEFAULT_TARGET,
    calib: Annotated[
        str,
        typer.Option(
            metavar="TEXT",
            help="Text like what the model will see: a name from calib/, a .txt, .jsonl or .parquet file, or a "
            "`datasets` id or folder.",
            autocompletion=completion.calibrations,
            rich_help_panel=panels.TEXT,
        ),
    ] = AnalyzeOptions.calib,
    effort: Annotated[
        Literal["auto", Effort],
        typer.Option(
            help="How thorough the analysis is; auto is default where that takes minutes, quick for large models.",
            rich_help_panel=panels.LOSSES,
        ),
    ] = "auto",
    max_memory: MaxMemory = None,
    lang: Lang = EmitOptions.language,
    run: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Run folder, for all that is known of the model.",
            show_default="qplan-runs/<model>",
            autocompletion=completion.runs,
            rich_help_panel=panels.FOLDERS,
        ),
    ] = None,
    restart: Annotated[
        bool,
        typer.Option("--restart", help="Discard an earlier run with other inputs.", rich_help_panel=panels.FOLDERS),
    ] = AnalyzeOptions.restart,
    verbose: Annotated[
        bool, typer.Option("--verbose", help="Tell every step and every promise.", rich_help_panel=panels.OUTPUT)
    ] = False,
) -> None:
    """Quantize a model for MNN: analyze, plan, build and prove it, in one command.

    It can be killed at any moment: the same command resumes. `qplan analyze` and `qplan emit` are its two halves, with
    all options.

    Examples:
        qplan quantize Qwen/Qwen2.5-0.5B-Instruct
        qplan quantize models/mine my-model-mnn --budget int4 --target phone --calib my-text.jsonl
        qplan quantize models/mine --budget 300MB --effort quick
    """
    wanted = PlanRequest(budgets=parse_budgets([budget]), rules=Rules.parse(target=target))
    memory = memory_limit(max_memory)
    analysis = AnalyzeOptions(
        model=model,
        calib=calib,
        effort="default" if effort == "auto" else effort,
        restart=restart,
        max_memory_bytes=memory,
    )
    emission = EmitOptions(wanted=wanted, language=lang, max_memory_bytes=memory)
    home = RunFolder(run) if run is not None else RunFolder.for_model(model)
    home.check_place()
    given = out if out is not None else Path(f"{home.folder.name}-{home.budget(wanted.label).name}-MNN")
    from qplan.jobs.checks import check_analyze  # noqa: PLC0415 - NumPy and pyarrow: not for --help

    check_analyze(analysis)
    # torch and transformers take seconds to import: not for a wrong word
    from qplan.cli.quantized_table import quantized_table  # noqa: PLC0415
    from qplan.jobs.analyze import run_analyze  # noqa: PLC0415
    from qplan.jobs.emit import run_emit  # noqa: PLC0415
    from qplan.jobs.quantize import check_out, choose_effort, give_out  # noqa: PLC0415

    check_out(given)
    home, tell = tidied(home), say if verbose else _ignore
    if effort == "auto":
        chosen = choose_effort(analysis, home)
        analysis = chosen.options
        say(chosen.told)
    with work_bar("1 of 2, analyzing") as progress:
        table = run_analyze(analysis, home, tell, progress)
    answer(effort=analysis.effort, analysis=analysis_document(table, home.sensitivity))
    with work_bar("2 of 2, planning and building") as progress:
        emitted = run_emit(emission, home, tell, progress, command_line())
    files = PlanFolder(emitted.folder)
    give_out(files.model, given)
    answer(out=str(given), **emit_document(emitted))
    if verbose:
        show_plan(emitted)
    console.out.print(quantized_table(emitted.plan, emitted.verification))
    console.out.print(
        f"model:  {given}\nreport: {files.report}\nnext:   {shlex.join(['qplan', 'run', str(given), 'Hello'])}",
        soft_wrap=True,
    )
    check_promises(emitted)


def _ignore(_message: str) -> None:
    """Takes the lines about steps that are told with ``--verbose`` only."""
