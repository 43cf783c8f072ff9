"""``qplan frontier``: the best plan at every size, from one analysis."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from qplan.cli.console import out, say
from qplan.cli.rules import GroupFused, Groups, LeastWidths, LogitsBits, MetricOption, Pins, rules_of
from qplan.planner.metric import Metric
from qplan.report import notation
from qplan.report.palette import BITS, text_on

_BAR = 16
"""Characters of a bar."""


def command(
    run: Annotated[Path | None, typer.Option(help="Run folder.  [default: the latest in qplan-runs]")] = None,
    points: Annotated[int, typer.Option(help="How many budgets to solve.")] = 24,
    logits_bits: LogitsBits = 8,
    pin: Pins = None,
    min_bits: LeastWidths = None,
    group: Groups = None,
    group_fused: GroupFused = False,
    metric: MetricOption = Metric.kl,
) -> None:
    """Solve a sweep of budgets: a table and a plot of what bytes buy, with uniform formats and the knees.

    Example: `qplan frontier --points 40`
    """
    # matplotlib takes a second to import: not for --help
    from qplan.pipeline.frontier import run_frontier  # noqa: PLC0415
    from qplan.pipeline.runs import Run  # noqa: PLC0415
    from qplan.report.frontier import KNEE, frontier_rows  # noqa: PLC0415

    target = Run(run) if run is not None else Run.latest()
    if run is None:
        say(f"using the latest run, {target.folder}")
    swept = run_frontier(target, rules_of(logits_bits, pin, min_bits, group, fused=group_fused, metric=metric), points)
    view = Table(
        title=f"{len(swept.frontier.points)} plans in {swept.frontier.seconds:.1f} s: predicted KL to FP32, "
        f"nats per token, memory {swept.table.goal}",
        caption="of uniform: loss over that of the best uniform format of at most these bytes (head int8, same "
        "rounding); "
        f"bits: {_BAR} equal shares of the weights but the head's, F is 16",
        box=SIMPLE_HEAD,
        title_style="",
        padding=(0, 1),
        pad_edge=False,
    )
    for column in ("MB", "bpw", "KL", "of uniform", "bits of weights", "head", "uniform"):
        view.add_column(
            column, justify="left" if column in ("uniform", "head", "bits of weights") else "right", no_wrap=True
        )
    for row in frontier_rows(swept.table, swept.frontier):
        style = "dim" if row.is_uniform else ("bold" if row.label == KNEE else "")
        view.add_row(
            f"{row.total_bytes / 1e6:,.3f}",
            "" if row.bpw is None else f"{row.bpw:.2f}",
            notation.loss(row.joint_nats),
            "" if row.against_uniform is None else notation.ratio(row.against_uniform),
            _bar(row.widths),
            row.head,
            row.label.removeprefix("uniform ") if row.is_uniform else f"◀ {row.label}" if row.label else "",
            style=style,
        )
    out.print(view)
    for name in ("frontier.png", "frontier.md", "frontier.json"):
        out.print(f"{swept.folder / name}", markup=False, soft_wrap=True)


def _bar(shares: Mapping[int, float]) -> Text:
    """Widths as one character per equal share of the weights, in the report's colours: ``33344444445555688F``."""
    bar, total, drawn = Text(), 0.0, 0
    for bits, share in shares.items():
        total += share
        count = round(total * _BAR) - drawn
        drawn += count
        fill = BITS[bits]
        bar.append(("F" if bits == 16 else str(bits)) * count, style=f"{text_on(fill)} on {fill}")
    return bar
