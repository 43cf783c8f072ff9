"""``qplan plan``: the plan for a budget, without building it; and what changed between two plans."""

from __future__ import annotations

import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qplan.choosing.request import PlanRequest
from qplan.cli import completion, panels
from qplan.cli.app import App
from qplan.cli.console import answer, out, say
from qplan.cli.documents import diff_document, plan_document
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
from qplan.cli.rules import (
    GroupFused,
    Groups,
    LatestRun,
    LeastWidths,
    LogitsBits,
    MetricOption,
    ParityOption,
    Pins,
    PrecisionOption,
    existing_run,
    rules_of,
    run_given,
)
from qplan.cost.target import DEFAULT_TARGET
from qplan.jobs.options import PlanOptions
from qplan.mnn.engines import EngineVersion
from qplan.planner.rules import Rules

if TYPE_CHECKING:
    from qplan.jobs.plan import PlanAnswer

app = App(invoke_without_command=True)

_ROWS = 40


@app.callback()
@with_modes("plan")
def command(
    context: typer.Context,
    budget: BudgetOption = None,
    parity: ParityOption = Rules.parity,
    max_kl: MaxKl = None,
    max_ppl_increase: MaxPplIncrease = None,
    max_ram: MaxRam = None,
    kv_tokens: ContextOption = None,
    max_decode_ms: MaxDecodeMs = None,
    max_prefill_ms: MaxPrefillMs = None,
    objective: ObjectiveOption = PlanRequest.objective,
    logits_bits: LogitsBits = Rules.logits_bits,
    pin: Pins = None,
    min_bits: LeastWidths = None,
    group: Groups = None,
    group_fused: GroupFused = Rules.fused,
    metric: MetricOption = Rules.metric,
    target: TargetOption = DEFAULT_TARGET,
    precision: PrecisionOption = "low",
    engine: EngineOption = None,
    dynamic_option: DynamicOptionChoice = AUTO,
    kv: KvOption = AUTO,
    out_file: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="FILE",
            help="Write the plan to this file, for `qplan emit --plan FILE`.",
            show_default="nothing is written",
            rich_help_panel=panels.FOLDERS,
        ),
    ] = None,
    run: LatestRun = None,
) -> None:
    """Show the plan for a budget, and what a better one would cost: seconds, and nothing is built.

    It is what `qplan emit` starts from, which then measures whole models and may change a few tensors.

    Examples:
        qplan plan --budget int4
        qplan plan --budget 300MB --pin '*.0.mlp.down_proj=fp16' --out mine.json
        qplan plan diff int4 int8
    """
    if context.invoked_subcommand is not None:
        return
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
        context=kv_tokens,
        kv=kv,
        max_decode_ms=max_decode_ms,
        max_prefill_ms=max_prefill_ms,
    )
    options = PlanOptions(
        wanted=wanted,
        dynamic_option=None if dynamic_option == AUTO else dynamic_option,
        engine=None if engine is None else EngineVersion.parse(engine),
    )
    home = run_given(run)
    from qplan.jobs.plan import run_plan  # noqa: PLC0415 - the solver and pyarrow: not for --help

    found = run_plan(options, home, say)
    if out_file is not None:
        found.plan.write(out_file)
    answer(run=str(home.folder), file=None if out_file is None else str(out_file), **plan_document(found))
    show(found)
    if out_file is not None:
        out.print(f"wrote {out_file}", soft_wrap=True)
    out.print(f"\nnext:  {_next_command(home.folder, out_file)}", soft_wrap=True)


def show(found: PlanAnswer) -> None:
    """Print a plan for people."""
    from qplan.cli.plan_tables import limits_told, predicted_table, times_line  # noqa: PLC0415 - not for --help
    from qplan.cli.tables import cache_line, plan_table  # noqa: PLC0415

    plan = found.plan
    out.print(plan_table(plan))
    out.print(predicted_table(plan, found.uniform_nats, found.larger))
    for line in limits_told(plan):
        out.print(line)
    if found.times is not None:
        out.print(times_line(found.times))
    if plan.kv is not None:
        out.print(cache_line(plan.kv))
    for known in plan.notes:
        if known.code in _SHOWN:
            out.print(f"note: {known}")


_SHOWN = frozenset({"budget-does-not-bind", "limits-do-not-bind", "no-choice-left", "graph-estimated", "time-limit"})
"""Notes of a plan that are printed."""

_NOT_OF_EMIT = frozenset({"--json", "--quiet"})


def _next_command(run: Path, written: Path | None) -> str:
    """The command line that builds this plan: the one that was typed, as ``emit`` takes it."""
    if written is not None:
        return shlex.join(["qplan", "emit", "--plan", str(written), "--run", str(run)])
    words = [word for word in sys.argv[2:] if word not in _NOT_OF_EMIT]
    named = any(word == "--run" or word.startswith("--run=") for word in words)
    return shlex.join(["qplan", "emit", *words, *([] if named else ["--run", str(run)])])


@app.command("diff")
@with_modes("plan diff")
def diff_command(
    before: Annotated[
        str, typer.Argument(help="A plan.json, its folder, or a budget of the run.", autocompletion=completion.plans)
    ],
    after: Annotated[str, typer.Argument(help="Another.", autocompletion=completion.plans)],
    every: Annotated[
        bool, typer.Option("--all", help=f"Show every tensor, not only the {_ROWS} that matter most.")
    ] = False,
    run: LatestRun = None,
) -> None:
    """Show what changed between two plans, and what it costs.

    Examples:
        qplan plan diff int4 int8
        qplan plan diff int4 qplan-runs/my-model/int4/edited.json --all
    """
    home = None if run is None else existing_run(run)
    from qplan.choosing.planned import planned_on  # noqa: PLC0415
    from qplan.cli.diff_tables import changes_table, totals_table  # noqa: PLC0415 - scipy and pyarrow: not for --help
    from qplan.planner.diff import diff  # noqa: PLC0415
    from qplan.run.plans import find_plan  # noqa: PLC0415

    first, second = (planned_on(find_plan(name, home), home) for name in (before, after))
    old, new = first.recounted(), second.recounted()
    # plans for two engines have tables of their own, with the losses of one analysis
    changes = replace(diff(old, new), comparable=first.analysis_sha256 == second.analysis_sha256)
    answer(**diff_document(changes, {"before": old, "after": new}))
    if changes.changes:
        out.print(changes_table(changes, new, most=None if every else _ROWS))
    out.print(totals_table(changes, old, new, (before, after)))
    if not changes.comparable:
        out.print("the two plans' losses come from different analyses: their difference mixes both", style="yellow")
