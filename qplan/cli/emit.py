"""``qplan emit``: plan under a budget, build the MNN model, prove it on the engine."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.text import Text

from qplan.choosing.request import Increase, PlanRequest
from qplan.cli import completion, panels
from qplan.cli.console import answer, out, remark, say, work_bar
from qplan.cli.documents import emit_document
from qplan.cli.forecast import DryRun, check_alone, show_forecast
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
from qplan.cost.kv_cache import KvMode
from qplan.cost.target import DEFAULT_TARGET, target_names
from qplan.errors import InputError, VerificationError
from qplan.jobs.options import EmitOptions
from qplan.mnn.arm.processors import parse_processors
from qplan.mnn.engines import EngineVersion
from qplan.planner.budget import parse_budgets
from qplan.planner.rules import Rules
from qplan.planner.size import Size
from qplan.run.plan_folder import PlanFolder
from qplan.settings import DynamicOption, Objective, Tune

if TYPE_CHECKING:
    from qplan.jobs.emit import Emitted


AUTO: Literal["auto"] = "auto"
"""Value of ``--dynamic-option`` for which `EmitOptions` has None, and of ``--kv``."""

KV_MODES = tuple(mode.value for mode in KvMode)


@with_modes("emit")
def command(
    budget: Annotated[
        list[str] | None,
        typer.Option(
            help="No more than a uniform export takes (`int8`, `int4`, `fp16`; see --parity), or files of `4.5bpw`, "
            "`300MB` or `60%` of fp16; repeat it or use commas for several.",
            show_default=f"{PlanRequest.budgets[0].text}, if nothing else is limited",
            metavar="BUDGET",
            autocompletion=completion.budgets,
            rich_help_panel=panels.LIMITS,
        ),
    ] = None,
    parity: ParityOption = Rules.parity,
    max_kl: Annotated[
        float | None,
        typer.Option(metavar="NATS", help="Maximum KL to FP32, nats per token.", rich_help_panel=panels.LIMITS),
    ] = None,
    max_ppl_increase: Annotated[
        str | None,
        typer.Option(
            metavar="GROWTH",
            help="Maximum increase of the perplexity: `0.5`, or `1%` of FP32's.",
            rich_help_panel=panels.LIMITS,
        ),
    ] = None,
    max_ram: Annotated[
        str | None,
        typer.Option(
            metavar="BYTES",
            help="Maximum RAM of the weights after loading, e.g. `300MB`; with --context also of the KV cache.",
            rich_help_panel=panels.LIMITS,
        ),
    ] = None,
    context: Annotated[
        int | None,
        typer.Option(
            metavar="TOKENS",
            help="Tokens that the KV cache is to hold: counts its RAM, and chooses how it is stored.",
            rich_help_panel=panels.LIMITS,
        ),
    ] = None,
    max_decode_ms: Annotated[
        float | None,
        typer.Option(
            metavar="MS",
            help="Maximum milliseconds per decoded token; needs `qplan profile`.",
            rich_help_panel=panels.LIMITS,
        ),
    ] = None,
    max_prefill_ms: Annotated[
        float | None,
        typer.Option(
            metavar="MS",
            help="Maximum milliseconds for the profile's prompt; needs `qplan profile`.",
            rich_help_panel=panels.LIMITS,
        ),
    ] = None,
    objective: Annotated[
        Objective,
        typer.Option(
            metavar="OBJECTIVE",
            help="What to optimize: least `loss`, or `smallest` or `fastest` under a limit on the loss.",
            rich_help_panel=panels.LIMITS,
        ),
    ] = PlanRequest.objective,
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
            help="Fit the integers of the plan to the whole model, layer by layer, and take them where that lowers its "
            "loss; auto does, if tensors are rounded by auto or gptq.",
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
    target: Annotated[
        str,
        typer.Option(
            metavar="TARGET",
            help=f"Where it will run: {', '.join(f'`{name}`' for name in target_names())}.",
            autocompletion=completion.targets,
            rich_help_panel=panels.ENGINE,
        ),
    ] = DEFAULT_TARGET,
    precision: PrecisionOption = "low",
    engine: Annotated[
        str | None,
        typer.Option(
            metavar="VERSION",
            help="MNN version that the model must run on, e.g. `3.5.0`.",
            show_default="the plan's, else the installed",
            rich_help_panel=panels.ENGINE,
        ),
    ] = None,
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
    dynamic_option: Annotated[
        Literal["auto", DynamicOption],
        typer.Option(
            help="2 gives int8 activations a scale per block: more exact, slower. auto takes 2 where it pays.",
            rich_help_panel=panels.ENGINE,
        ),
    ] = AUTO,
    kv: Annotated[
        Literal["auto", "float", "k8", "kv8", "ktq4", "tq4", "ktq3", "tq3"],
        typer.Option(
            metavar="MODE",
            help=f"How the KV cache is stored: {', '.join(f'`{mode}`' for mode in KV_MODES)}; auto is float, or under "
            "--max-ram what loses least.",
            rich_help_panel=panels.ENGINE,
        ),
    ] = AUTO,
    no_build: Annotated[
        bool,
        typer.Option("--no-build", help="Stop after plan.json and quant_config.json.", rich_help_panel=panels.ENGINE),
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
    budgets = parse_budgets(budget or ())
    if plan is not None and budgets == PlanRequest.budgets:  # typed, though it is what would be taken anyway
        msg = f"--plan {plan} --budget {budgets[0].text}: a given plan is built as it is; leave one of them out"
        raise InputError(msg)
    if not budgets and objective == "loss" and (max_decode_ms, max_prefill_ms, max_ram) == (None,) * 3:
        budgets = PlanRequest.budgets
    wanted = PlanRequest(
        budgets=budgets,
        objective=objective,
        max_kl=max_kl,
        max_ppl_increase=None if max_ppl_increase is None else Increase.parse(max_ppl_increase),
        max_decode_ms=max_decode_ms,
        max_prefill_ms=max_prefill_ms,
        max_ram=None if max_ram is None else Size.parse(max_ram, "--max-ram"),
        context=context,
        kv=None if kv == AUTO else KvMode(kv),
        rules=rules_of(
            logits_bits,
            pin,
            min_bits,
            group,
            fused=group_fused,
            target=target,
            metric=metric,
            parity=parity,
            precision=precision,
        ),
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
    # torch and transformers take seconds to import: not for a wrong word
    from qplan.jobs.emit import emission_of, run_emit  # noqa: PLC0415

    if dry_run:
        from qplan.jobs.expect_emit import expect_emit  # noqa: PLC0415

        show_forecast(expect_emit(emission_of(options, home), measure=True))
        return
    with work_bar("emitting") as progress:
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
    files = PlanFolder(emitted.folder)
    answer(**emit_document(emitted))
    _show_plan(emitted)
    out.print(f"\nthe same plan with llmexport:\n  {emitted.export_command}", soft_wrap=True)
    for problem in emitted.export_problems:
        remark(problem)
    for missing in () if emitted.verification is None else emitted.verification.notes:
        remark(str(missing))
    if emitted.verification is not None:
        out.print(f"model:  {files.model}", soft_wrap=True)
    out.print(f"report: {files.report}", soft_wrap=True)
    if emitted.verification is not None and not emitted.verification.passed:
        failed = [check.name for check in emitted.verification.checks if not check.passed]
        kept = "1 promise was" if len(failed) == 1 else f"{len(failed)} promises were"
        msg = f"{kept} not kept: {'; '.join(failed)}. See {files.report}"
        raise VerificationError(msg)


def _show_plan(emitted: Emitted) -> None:
    """Print the plan, what was measured of it, and what it is compared with."""
    from qplan.cli.tables import (  # noqa: PLC0415 - not for --help
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
            out.print(f"{known}.")
    out.print(felt_table(plan, verification))
    if verification is not None:
        out.print(verification_table(verification))
    if plan.rivals:
        out.print(rivals_table(plan, verification))
    if verification is not None and verification.arm:
        out.print(arm_table(verification))
    out.print(f"\n{verdict(plan, verification).sentence}\n")
    for check in () if verification is None else verification.checks:
        out.print(Text.assemble(mark(holds=check.passed), f" {check.name}: ", (check.detail, "dim")))
