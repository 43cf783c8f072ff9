"""``qplan frontier``: the best plan at every size, from one analysis."""

from __future__ import annotations

from typing import Annotated

import typer

from qplan.cli.console import answer, out, say
from qplan.cli.documents import frontier_document
from qplan.cli.modes import with_modes
from qplan.cli.rules import GroupFused, Groups, LatestRun, LeastWidths, LogitsBits, MetricOption, Pins, rules_of
from qplan.planner.metric import Metric


@with_modes("frontier")
def command(
    points: Annotated[int, typer.Option(metavar="N", help="How many budgets to solve.")] = 24,
    logits_bits: LogitsBits = 8,
    pin: Pins = None,
    min_bits: LeastWidths = None,
    group: Groups = None,
    group_fused: GroupFused = False,
    metric: MetricOption = Metric.kl,
    run: LatestRun = None,
) -> None:
    """Solve a sweep of budgets: a table and a plot of what bytes buy, with uniform formats and the knees.

    Examples:
        qplan frontier
        qplan frontier --points 40 --logits-bits 0
    """
    # matplotlib takes a second to import: not for --help
    from qplan.cli.frontier_table import frontier_table  # noqa: PLC0415
    from qplan.jobs.frontier import run_frontier  # noqa: PLC0415
    from qplan.run.folder import RunFolder  # noqa: PLC0415

    target = RunFolder(run) if run is not None else RunFolder.latest()
    if run is None:
        say(f"using the latest run, {target.folder}")
    swept = run_frontier(target, rules_of(logits_bits, pin, min_bits, group, fused=group_fused, metric=metric), points)
    answer(**frontier_document(swept))
    out.print(frontier_table(swept))
    for path in swept.files:
        out.print(f"{path}", markup=False, soft_wrap=True)
