"""``qplan plan diff``: what changed between two plans, and what it costs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.table import Table

from qplan.cli.console import out
from qplan.report import notation

if TYPE_CHECKING:
    from qplan.planner.diff import PlanDiff
    from qplan.planner.plan import Plan

app = typer.Typer(help="Look at plans.", no_args_is_help=True, rich_markup_mode="markdown")

_ROWS = 40


@app.callback()
def _root() -> None:
    """Look at plans."""


@app.command("diff")
def diff_command(
    before: Annotated[str, typer.Argument(help="A plan.json, its folder, or a budget of the run.")],
    after: Annotated[str, typer.Argument(help="Another.")],
    run: Annotated[Path | None, typer.Option(help="Run folder.  [default: the latest in qplan-runs]")] = None,
    every: Annotated[bool, typer.Option("--all", help=f"Every tensor, not only the {_ROWS} that matter most.")] = False,
) -> None:
    """Show what changed between two plans, and what it costs.

    Example: `qplan plan diff int4 qplan-runs/my-model/int4/edited.json`
    """
    from qplan.pipeline.plans import find_plan, recounted  # noqa: PLC0415
    from qplan.pipeline.runs import Run  # noqa: PLC0415
    from qplan.planner.diff import diff  # noqa: PLC0415

    home = None if run is None else Run(run)
    old, new = (recounted(find_plan(name, home), home) for name in (before, after))
    changes = diff(old, new)
    if changes.changes:
        out.print(_changes(changes, new, most=None if every else _ROWS))
    out.print(_totals(changes, old, new, (before, after)))
    if not changes.comparable:
        out.print("[yellow]the two plans' losses come from different analyses: their difference mixes both[/yellow]")


def _changes(changes: PlanDiff, after: Plan, *, most: int | None) -> Table:
    shown = sorted(changes.changes, key=lambda change: -abs(change.loss_nats))[:most]
    names = {change.name for change in shown}
    title = f"{len(changes.changes)} of {len(after.tensors)} tensors changed"
    if len(shown) < len(changes.changes):
        title += f", the {len(shown)} whose loss changes most (--all for every one)"
    view = Table(title=title, box=SIMPLE_HEAD, title_style="", padding=(0, 1), pad_edge=False)
    for column in ("tensor", "before", "after", "bytes", "nats/token"):
        view.add_column(column, justify="left" if column == "tensor" else "right", no_wrap=True)
    for change in changes.changes:
        if change.name in names:
            style = "green" if change.loss_nats < 0 else "red"
            view.add_row(
                change.name,
                change.before.name,
                change.after.name,
                f"{change.bytes:+,}",
                f"[{style}]{'+' if change.loss_nats > 0 else ''}{notation.loss(change.loss_nats)}[/{style}]",
            )
    return view


def _totals(changes: PlanDiff, old: Plan, new: Plan, names: tuple[str, str]) -> Table:
    view = Table(box=SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
    for column in ("", "bytes", "mean bits", "sum of losses"):
        view.add_column(column, justify="left" if not column else "right")
    for name, plan in zip(names, (old, new), strict=True):
        loss = sum(tensor.loss_nats for tensor in plan.tensors)
        view.add_row(name, f"{plan.files.total:,}", f"{plan.mean_bits:.2f}", notation.loss(loss))
    change = sum(change.loss_nats for change in changes.changes)
    view.add_row(
        "difference",
        f"{changes.total_bytes:+,}",
        f"{new.mean_bits - old.mean_bits:+.2f}",
        f"{'+' if change > 0 else ''}{notation.loss(change)}",
        style="bold",
    )
    return view
