"""``qplan emit``: plan under a budget, build the MNN model, prove it on the engine."""

from __future__ import annotations

import shlex
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from qplan.cli import completion, panels
from qplan.cli.console import answer, out, progress_bar, remark, say
from qplan.cli.documents import emit_document
from qplan.cli.modes import with_modes
from qplan.cli.report import Lang
from qplan.cli.rules import (
    GroupFused,
    Groups,
    LatestRun,
    LeastWidths,
    LlmExport,
    LogitsBits,
    MetricOption,
    Pins,
    rules_of,
)
from qplan.cost.target import DEFAULT_TARGET
from qplan.errors import InputError, VerificationError
from qplan.planner.metric import Metric
from qplan.report.words import Language
from qplan.run.plan_folder import PlanFolder

if TYPE_CHECKING:
    from qplan.jobs.emit import Emitted


class DynamicOptionChoice(StrEnum):
    """MNN's ``dynamic_option`` that the model ships with."""

    auto = "auto"
    zero = "0"
    two = "2"


class ObjectiveChoice(StrEnum):
    """What makes a plan the best."""

    loss = "loss"
    smallest = "smallest"
    fastest = "fastest"


@with_modes("emit")
def command(
    budget: Annotated[
        list[str] | None,
        typer.Option(
            help="`int8`, `int4`, `fp16` (as large as that uniform export), `4.5bpw`, `300MB`, `60%`; repeat it, or "
            "write commas, for several.",
            show_default="int8, if nothing else is limited",
            metavar="BUDGET",
            autocompletion=completion.budgets,
            rich_help_panel=panels.LIMITS,
        ),
    ] = None,
    max_kl: Annotated[
        float | None,
        typer.Option(metavar="NATS", help="Most KL to FP32, nats per token.", rich_help_panel=panels.LIMITS),
    ] = None,
    max_ppl_increase: Annotated[
        str | None,
        typer.Option(
            metavar="GROWTH",
            help="Most increase of the perplexity: `0.5`, or `1%` of FP32's.",
            rich_help_panel=panels.LIMITS,
        ),
    ] = None,
    max_ram: Annotated[
        str | None,
        typer.Option(
            metavar="BYTES", help="Most RAM for weights after loading, e.g. `300MB`.", rich_help_panel=panels.LIMITS
        ),
    ] = None,
    max_decode_ms: Annotated[
        float | None,
        typer.Option(
            metavar="MS",
            help="Most milliseconds per decoded token; needs `qplan profile`.",
            rich_help_panel=panels.LIMITS,
        ),
    ] = None,
    max_prefill_ms: Annotated[
        float | None,
        typer.Option(
            metavar="MS",
            help="Most milliseconds for the profile's prompt; needs `qplan profile`.",
            rich_help_panel=panels.LIMITS,
        ),
    ] = None,
    objective: Annotated[
        ObjectiveChoice,
        typer.Option(
            metavar="OBJECTIVE",
            help="What is best: the least `loss`, or `smallest` or `fastest` under a limit on the loss.",
            rich_help_panel=panels.LIMITS,
        ),
    ] = ObjectiveChoice.loss,
    logits_bits: LogitsBits = 8,
    pin: Pins = None,
    min_bits: LeastWidths = None,
    group: Groups = None,
    group_fused: GroupFused = False,
    metric: MetricOption = Metric.kl,
    repair: Annotated[
        int,
        typer.Option(
            metavar="N",
            help="Whole models that promotions and demotions may be tried on; 0 for none.",
            rich_help_panel=panels.RULES,
        ),
    ] = 48,
    plan: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Build from this plan, e.g. an edited plan.json, instead of making one.",
            rich_help_panel=panels.RULES,
        ),
    ] = None,
    target: Annotated[
        str,
        typer.Option(
            metavar="TARGET",
            help="Where it will run: `cpu-x86`, `cpu-arm`, `npu-hexagon`.",
            autocompletion=completion.targets,
            rich_help_panel=panels.ENGINE,
        ),
    ] = DEFAULT_TARGET,
    engine: Annotated[
        str | None,
        typer.Option(
            metavar="VERSION",
            help="MNN version that the model must run on, e.g. `3.5.0`.",
            show_default="the plan's, else the installed",
            rich_help_panel=panels.ENGINE,
        ),
    ] = None,
    dynamic_option: Annotated[
        DynamicOptionChoice,
        typer.Option(
            help="2: int8 activations with a scale per block, more exact and slower; auto if it pays.",
            rich_help_panel=panels.ENGINE,
        ),
    ] = DynamicOptionChoice.auto,
    no_build: Annotated[
        bool,
        typer.Option("--no-build", help="Stop after plan.json and quant_config.json.", rich_help_panel=panels.ENGINE),
    ] = False,
    llmexport: LlmExport = None,
    text: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT",
            help="What the model is judged on, as for --calib.",
            show_default="held-out windows",
            autocompletion=completion.calibrations,
            rich_help_panel=panels.JUDGING,
        ),
    ] = None,
    tokens: Annotated[
        int, typer.Option(metavar="N", help="At most this many tokens of it.", rich_help_panel=panels.JUDGING)
    ] = 2048,
    threads: Annotated[
        int, typer.Option(metavar="N", help="Threads of the engine in measurements.", rich_help_panel=panels.JUDGING)
    ] = 1,
    lang: Lang = Language.en,
    run: LatestRun = None,
) -> None:
    """Plan under a budget, build the MNN model and prove it on the engine.

    Examples:
        qplan emit --budget int8
        qplan emit --budget 300MB --pin '*.0.mlp.down_proj=fp16'
        qplan emit --max-kl 0.01 --objective smallest
    """
    # torch and transformers take seconds to import: not for --help
    from qplan.choosing.request import Increase, PlanRequest  # noqa: PLC0415
    from qplan.jobs.emit import run_emit  # noqa: PLC0415
    from qplan.jobs.emit_job import EmitOptions  # noqa: PLC0415
    from qplan.run.folder import RunFolder  # noqa: PLC0415

    if threads < 1:
        msg = f"--threads {threads}: at least 1"
        raise InputError(msg)
    home = RunFolder(run) if run is not None else RunFolder.latest()
    if run is None:
        say(f"using the latest run, {home.folder}")
    rules = rules_of(logits_bits, pin, min_bits, group, fused=group_fused, target=target, metric=metric)
    increase = None if max_ppl_increase is None else Increase.parse(max_ppl_increase)
    budgets = tuple(part.strip() for text in budget or () for part in text.split(",") if part.strip())
    if not budgets and objective is ObjectiveChoice.loss and (max_decode_ms, max_prefill_ms, max_ram) == (None,) * 3:
        budgets = ("int8",)
    wanted = PlanRequest(budgets, objective.value, max_kl, increase, max_decode_ms, max_prefill_ms, max_ram, rules)
    options = EmitOptions(
        wanted,
        text,
        tokens,
        build=not no_build,
        llmexport=llmexport,
        threads=threads,
        dynamic_option=_OPTIONS[dynamic_option],
        evaluations=repair,
        plan=plan,
        engine=engine,
        language=lang,
    )
    with progress_bar("FP32 reference") as progress:
        emitted = run_emit(options, home, say, progress, command_line())
    show(emitted)


_OPTIONS: dict[DynamicOptionChoice, Literal[0, 2] | None] = {
    DynamicOptionChoice.auto: None,
    DynamicOptionChoice.zero: 0,
    DynamicOptionChoice.two: 2,
}


_MODES = frozenset({"--json", "--quiet"})


def command_line() -> str:
    """This process's command, as a user would type it to see what it prints."""
    return shlex.join(["qplan", *(word for word in sys.argv[1:] if word not in _MODES)])


def show(emitted: Emitted) -> None:
    """Print what was made.

    Raises:
        VerificationError: the built model broke a promise.
    """
    from qplan.cli.tables import plan_table, verification_table  # noqa: PLC0415 - not for --help

    files = PlanFolder(emitted.folder)
    answer(**emit_document(emitted))
    out.print(plan_table(emitted.plan))
    for limit in emitted.plan.limits:
        out.print(f"{limit.name}: {limit.predicted:.4g} of {limit.limit:.4g} {limit.unit}", markup=False)
    if emitted.verification is not None:
        out.print(verification_table(emitted.verification))
        for check in emitted.verification.checks:
            mark = "[green]✓[/green]" if check.passed else "[bold red]✗[/bold red]"
            out.print(f"{mark} {check.name}: [dim]{check.detail}[/dim]")
    out.print(f"\nthe same plan with llmexport:\n  {emitted.export_command}", markup=False, soft_wrap=True)
    for problem in emitted.export_problems:
        remark(problem)
    if emitted.verification is not None:
        out.print(f"model:  {files.model}", markup=False, soft_wrap=True)
    out.print(f"report: {files.report}", markup=False, soft_wrap=True)
    if emitted.verification is not None and not emitted.verification.passed:
        failed = [check.name for check in emitted.verification.checks if not check.passed]
        msg = f"{len(failed)} promises were not kept: {'; '.join(failed)}. See {files.report}"
        raise VerificationError(msg)
