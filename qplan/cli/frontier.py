"""``qplan frontier``: the best plan at every size, from one analysis."""

from __future__ import annotations

from typing import Annotated

import typer

from qplan.cli.console import answer, out
from qplan.cli.documents import frontier_document
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
    rules_of,
    run_given,
)
from qplan.planner.rules import Rules
from qplan.run.frontier import POINTS


@with_modes("frontier")
def command(
    points: Annotated[int, typer.Option(metavar="N", help="How many budgets to solve.")] = POINTS,
    parity: ParityOption = Rules.parity,
    logits_bits: LogitsBits = Rules.logits_bits,
    pin: Pins = None,
    min_bits: LeastWidths = None,
    group: Groups = None,
    group_fused: GroupFused = Rules.fused,
    metric: MetricOption = Rules.metric,
    run: LatestRun = None,
) -> None:
    """Solve a sweep of budgets: a table and a plot of what bytes buy, with uniform formats and the knees.

    Examples:
        qplan frontier
        qplan frontier --points 40 --logits-bits 0
    """
    rules = rules_of(logits_bits, pin, min_bits, group, fused=group_fused, metric=metric, parity=parity)
    home = run_given(run)
    from qplan.jobs.checks import check_frontier  # noqa: PLC0415 - NumPy and pyarrow: not for --help

    check_frontier(home, rules, points)
    # the solver and matplotlib take seconds to import: not for a wrong word
    from qplan.cli.frontier_table import frontier_table  # noqa: PLC0415
    from qplan.jobs.frontier import run_frontier  # noqa: PLC0415

    swept = run_frontier(home, rules, points)
    answer(**frontier_document(swept))
    out.print(frontier_table(swept, out.width))
    for path in swept.files:
        out.print(f"{path}", soft_wrap=True)
