"""``qplan plan diff``: what changed between two plans, and what it costs."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import typer

from qplan.cli import completion
from qplan.cli.app import App
from qplan.cli.console import answer, out
from qplan.cli.documents import diff_document
from qplan.cli.modes import with_modes
from qplan.cli.rules import LatestRun, existing_run

app = App(help="Look at plans.", no_args_is_help=True)

_ROWS = 40


@app.callback()
def _root() -> None:
    """Look at plans."""


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
