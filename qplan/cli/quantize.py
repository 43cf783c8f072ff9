"""``qplan quantize``: a model in, an MNN folder out."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from qplan.choosing.request import PlanRequest
from qplan.cli import completion, console, panels
from qplan.cli.console import answer, say, work_bar
from qplan.cli.documents import analysis_document, emit_document
from qplan.cli.emit import command_line, show_plan
from qplan.cli.limits import AUTO, TargetOption
from qplan.cli.modes import with_modes
from qplan.cli.report import Lang
from qplan.cli.rules import LlmExport, MaxContext, MaxMemory, memory_limit
from qplan.cost.target import DEFAULT_TARGET
from qplan.jobs.options import QUANTIZED_TO, AnalyzeOptions, EmitOptions, QuantizeOptions
from qplan.planner.budget import parse_budgets
from qplan.planner.rules import Rules
from qplan.run.folder import RunFolder
from qplan.run.plan_folder import PlanFolder
from qplan.settings import Effort

if TYPE_CHECKING:
    from qplan.run.table import SensitivityTable


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
    ] = QUANTIZED_TO,
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
    ] = AUTO,
    max_context: MaxContext = None,
    llmexport: LlmExport = None,
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
    options = QuantizeOptions(
        model=model,
        out=out,
        wanted=PlanRequest(budgets=parse_budgets([budget]), rules=Rules.parse(target=target)),
        calib=calib,
        effort=None if effort == AUTO else effort,
        max_context=max_context,
        llmexport=llmexport,
        language=lang,
        run=run,
        restart=restart,
        max_memory_bytes=memory_limit(max_memory),
    )
    from qplan.jobs.checks import check_quantize  # noqa: PLC0415 - NumPy and pyarrow: not for --help

    check_quantize(options)
    # torch and transformers take seconds to import: not for a wrong word
    from qplan.cli.tables import quantized_table  # noqa: PLC0415
    from qplan.jobs.emitted import check_promises  # noqa: PLC0415
    from qplan.jobs.quantize import Audience, run_quantize  # noqa: PLC0415

    audience = Audience(say, say if verbose else None, work_bar, _analyzed)
    made = run_quantize(options, audience, command_line())
    files = PlanFolder(made.emitted.folder)
    answer(out=str(made.out), **emit_document(made.emitted))
    if verbose:
        show_plan(made.emitted)
    console.out.print(quantized_table(made.emitted.plan, made.emitted.verification))
    console.out.print(
        f"\nmodel:  {made.out}\nreport: {files.report}\nnext:   {shlex.join(['qplan', 'run', str(made.out), 'Hello'])}",
        soft_wrap=True,
    )
    check_promises(made.emitted)


def _analyzed(analysis: AnalyzeOptions, table: SensitivityTable, home: RunFolder) -> None:
    """Answer with the first half, which stays if the second one fails."""
    answer(effort=analysis.effort, analysis=analysis_document(table, home.sensitivity))
