"""``qplan emit``: plan under a budget, build the MNN model, prove it on the engine."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from qplan.choosing.request import PlanRequest
from qplan.cli import completion, panels
from qplan.cli.console import answer, out, remark, say, work_bar
from qplan.cli.documents import emit_document
from qplan.cli.forecast import DryRun, check_alone, show_forecast
from qplan.cli.limits import (
    AUTO,
    BudgetOption,
    ContextOption,
    DynamicOptionChoice,
    EngineOption,
    KvOption,
    MaxDecodeMs,
    MaxKl,
    MaxPplIncrease,
    MaxPrefillMs,
    MaxRam,
    ObjectiveOption,
    TargetOption,
    request_of,
)
from qplan.cli.modes import with_modes
from qplan.cli.ray import RayOption
from qplan.cli.report import Lang
from qplan.cli.rules import (
    GroupFused,
    Groups,
    LatestRun,
    LeastWidths,
    LlmExport,
    LogitsBits,
    MaxMemory,
    MetricOption,
    ParityOption,
    Pins,
    PrecisionOption,
    memory_limit,
    rules_of,
    run_given,
)
from qplan.cli.view import mark
from qplan.cost.target import DEFAULT_TARGET
from qplan.errors import InputError
from qplan.jobs.options import EmitOptions
from qplan.mnn.arm.processors import parse_processors
from qplan.mnn.engines import EngineVersion
from qplan.planner.budget import parse_budgets
from qplan.planner.rules import Rules
from qplan.run.plan_folder import PlanFolder
from qplan.settings import Tune

if TYPE_CHECKING:
    from qplan.jobs.emitted import Emitted


@with_modes("emit")
def command(
    budget: BudgetOption = None,
    parity: ParityOption = Rules.parity,
    max_kl: MaxKl = None,
    max_ppl_increase: MaxPplIncrease = None,
    max_ram: MaxRam = None,
    context: ContextOption = None,
    max_decode_ms: MaxDecodeMs = None,
    max_prefill_ms: MaxPrefillMs = None,
    objective: ObjectiveOption = PlanRequest.objective,
    logits_bits: LogitsBits = Rules.logits_bits,
    pin: Pins = None,
    min_bits: LeastWidths = None,
    group: Groups = None,
    group_fused: GroupFused = Rules.fused,
    metric: MetricOption = Rules.metric,
    repair: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            show_default="what one pass allows",
            help="Measure at most this many whole models to try promotions and demotions; 0 for none.",
            rich_help_panel=panels.RULES,
        ),
    ] = EmitOptions.evaluations,
    tune: Annotated[
        Tune,
        typer.Option(
            help="Fit the plan as a whole, and ship what lowers its loss: sequential fits integers layer by layer, "
            "scales trains scales end to end after that, full trains integers and scales layer by layer as well; auto "
            "does the first two, if tensors are rounded by auto or gptq and training fits the machine.",
            rich_help_panel=panels.RULES,
        ),
    ] = EmitOptions.tune,
    rivals: Annotated[
        int,
        typer.Option(
            metavar="N",
            help="Build this many of the best uniform models within the same limits, besides fp16, int8 and int4.",
            rich_help_panel=panels.JUDGING,
        ),
    ] = EmitOptions.rivals,
    plan: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Build from this plan, e.g. an edited plan.json, instead of making one.",
            rich_help_panel=panels.RULES,
        ),
    ] = None,
    target: TargetOption = DEFAULT_TARGET,
    precision: PrecisionOption = "low",
    engine: EngineOption = None,
    prove: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PROCESSOR",
            help="Prove the built model on MNN's ARM engine too, emulated: `arm` for `arm-v8`, `arm-dot` and "
            "`arm-i8mm`, or one of these or `arm-sme2`; repeat it or use commas. Needs `qplan engines add arm`.",
            show_default="this machine only",
            autocompletion=completion.processors,
            rich_help_panel=panels.ENGINE,
        ),
    ] = None,
    dynamic_option: DynamicOptionChoice = AUTO,
    kv: KvOption = AUTO,
    no_build: Annotated[
        bool,
        typer.Option(
            "--no-build",
            help="Write plan.json and quant_config.json, without the model; with --repair, measure whole models.",
            rich_help_panel=panels.ENGINE,
        ),
    ] = False,
    llmexport: LlmExport = None,
    text: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT",
            help="Text that the model is judged on, as for --calib.",
            show_default="held-out windows",
            autocompletion=completion.calibrations,
            rich_help_panel=panels.JUDGING,
        ),
    ] = None,
    tokens: Annotated[
        int, typer.Option(metavar="N", help="At most this many tokens of it.", rich_help_panel=panels.JUDGING)
    ] = EmitOptions.tokens,
    threads: Annotated[
        int, typer.Option(metavar="N", help="Engine threads in measurements.", rich_help_panel=panels.JUDGING)
    ] = EmitOptions.threads,
    max_memory: MaxMemory = None,
    dry_run: DryRun = False,
    lang: Lang = EmitOptions.language,
    ray: RayOption = EmitOptions.ray,
    run: LatestRun = None,
) -> None:
    """Plan under a budget, build the MNN model and prove it on the engine.

    Examples:
        qplan emit --budget int8
        qplan emit --budget 300MB --pin '*.0.mlp.down_proj=fp16'
        qplan emit --max-kl 0.01 --objective smallest
    """
    given = parse_budgets(budget or ())
    if plan is not None and given == PlanRequest.budgets:  # typed, though it is what would be taken anyway
        msg = f"--plan {plan} --budget {given[0].text}: a given plan is built as it is; leave one of them out"
        raise InputError(msg)
    rules = rules_of(
        logits_bits,
        pin,
        min_bits,
        group,
        fused=group_fused,
        target=target,
        metric=metric,
        parity=parity,
        precision=precision,
    )
    wanted = request_of(
        budget,
        rules,
        objective=objective,
        max_kl=max_kl,
        max_ppl_increase=max_ppl_increase,
        max_ram=max_ram,
        context=context,
        kv=kv,
        max_decode_ms=max_decode_ms,
        max_prefill_ms=max_prefill_ms,
    )
    options = EmitOptions(
        wanted=wanted,
        text=text,
        tokens=tokens,
        build=not no_build,
        llmexport=llmexport,
        threads=threads,
        dynamic_option=None if dynamic_option == AUTO else dynamic_option,
        evaluations=repair,
        rivals=rivals,
        tune=tune,
        plan=plan,
        engine=None if engine is None else EngineVersion.parse(engine),
        prove=parse_processors(prove or ()),
        language=lang,
        ray=ray,
        max_memory_bytes=memory_limit(max_memory),
    )
    if dry_run:
        check_alone(ray)
    home = run_given(run)
    from qplan.jobs.checks import check_emit  # noqa: PLC0415 - NumPy and pyarrow: not for --help

    check_emit(options, home)
    if not options.loads_model:
        from qplan.jobs.plan_only import run_plan_only  # noqa: PLC0415 - the solver: not for --help

        if dry_run:
            msg = "--dry-run --no-build: a plan takes seconds and no model is loaded; leave one of them out"
            raise InputError(msg)
        show(run_plan_only(options, home, say, command_line()))
        return
    # torch and transformers take seconds to import: not for a wrong word
    from qplan.jobs.emit import emission_of, run_emit  # noqa: PLC0415

    if dry_run:
        from qplan.jobs.expect_emit import expect_emit  # noqa: PLC0415

        show_forecast(expect_emit(emission_of(options, home), measure=True))
        return
    with work_bar("planning and building") as progress:
        emitted = run_emit(options, home, say, progress, command_line())
    show(emitted)


SHOWN = frozenset({"budget-does-not-bind", "limits-do-not-bind", "smaller-plan-taken"})
"""Notes of a plan that are printed: what it is, before all numbers."""

_MODES = frozenset({"--json", "--quiet"})


def command_line() -> str:
    """This process's command line, without the options that hide its output."""
    return shlex.join(["qplan", *(word for word in sys.argv[1:] if word not in _MODES)])


def show(emitted: Emitted) -> None:
    """Print what was made.

    Raises:
        VerificationError: the built model broke a promise.
    """
    from qplan.jobs.emitted import check_promises  # noqa: PLC0415 - not for --help

    files = PlanFolder(emitted.folder)
    answer(**emit_document(emitted))
    show_plan(emitted)
    out.print(f"\nthe same plan with llmexport:\n  {emitted.export_command}", soft_wrap=True)
    for problem in emitted.export_problems:
        remark(problem)
    for missing in () if emitted.verification is None else emitted.verification.notes:
        remark(str(missing))
    if emitted.verification is not None:
        out.print(f"model:  {files.model}", soft_wrap=True)
    out.print(f"report: {files.report}", soft_wrap=True)
    check_promises(emitted)


def show_plan(emitted: Emitted) -> None:
    """Print the plan, what was measured of it, and what it is compared with."""
    from qplan.cli.plan_tables import predicted_table  # noqa: PLC0415 - not for --help
    from qplan.cli.tables import (  # noqa: PLC0415
        arm_table,
        cache_line,
        felt_table,
        limits_lines,
        plan_table,
        rivals_table,
        verification_table,
    )
    from qplan.report.summary import verdict  # noqa: PLC0415

    plan, verification = emitted.plan, emitted.verification
    out.print(plan_table(plan))
    for line in limits_lines(plan):
        out.print(line)
    if plan.kv is not None:
        out.print(cache_line(plan.kv))
    for known in plan.notes:
        if known.code in SHOWN:
            out.print(f"note: {known}")
    out.print(predicted_table(plan) if verification is None else felt_table(plan, verification))
    if verification is not None:
        out.print(verification_table(verification))
    if plan.rivals:
        out.print(rivals_table(plan, verification))
    if verification is not None and verification.arm:
        out.print(arm_table(verification))
    out.print(f"\n{verdict(plan, verification).sentence}\n")
    for check in () if verification is None else verification.checks:
        out.print(Text.assemble(mark(holds=check.passed), f" {check.name}: ", (check.detail, "dim")))
