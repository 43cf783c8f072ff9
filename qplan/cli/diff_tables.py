"""The difference of two plans as tables in the terminal."""

from __future__ import annotations

from rich.table import Table
from rich.text import Text

from qplan.cli.view import table_view
from qplan.planner.diff import PlanDiff
from qplan.report import notation
from qplan.run.plan import Plan
from qplan.tensors import short_name


def changes_table(changes: PlanDiff, after: Plan, *, most: int | None) -> Table:
    """The tensors whose format changed; all of them, or those whose loss changes most."""
    shown = sorted(changes.changes, key=lambda change: -abs(change.loss_nats))[:most]
    names = {change.name for change in shown}
    title = f"{len(changes.changes)} of {len(after.tensors)} tensors changed"
    if len(shown) < len(changes.changes):
        title += f", the {len(shown)} whose loss changes most (--all for every one)"
    columns = ("tensor", "before", "after", "bytes", "nats/token")
    view = table_view(columns, left=columns[:3], heading=title, gap=3)
    for change in changes.changes:
        if change.name in names:
            style = "green" if change.loss_nats < 0 else "red"
            view.add_row(
                short_name(change.name),
                change.before.name,
                change.after.name,
                f"{change.bytes:+,}",
                Text(f"{'+' if change.loss_nats > 0 else ''}{notation.loss(change.loss_nats)}", style),
            )
    return view


def totals_table(changes: PlanDiff, old: Plan, new: Plan, names: tuple[str, str]) -> Table:
    """Bytes, mean width and sum of single losses of both plans."""
    view = table_view(("plan", "bytes", "mean bits", "sum of losses"), left=("plan",), gap=3)
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
