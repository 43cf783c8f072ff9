"""``qplan report``: a plan's report again, from what its run holds."""

from __future__ import annotations

from typing import Annotated

import typer

from qplan.cli import completion, panels
from qplan.cli.console import answer, out, say
from qplan.cli.modes import with_modes
from qplan.cli.rules import PlansRun, existing_run
from qplan.report.words import Language

Lang = Annotated[
    Language,
    typer.Option(
        "--lang",
        help="Language of the report: English or Chinese.",
        case_sensitive=False,
        rich_help_panel=panels.OUTPUT,
    ),
]
"""``--lang`` of every command that writes a report."""


@with_modes("report")
def command(
    plan: Annotated[
        str | None,
        typer.Argument(
            help="A plan.json, its folder, or a budget of the run.",
            show_default="the newest plan",
            autocompletion=completion.plans,
        ),
    ] = None,
    lang: Lang = Language.en,
    run: PlansRun = None,
) -> None:
    """Write `report.html` and `report.md` again, in any language, without building or measuring.

    Examples:
        qplan report
        qplan report int4 --lang zh
    """
    home = None if run is None else existing_run(run)
    # the solver, pandas and matplotlib take seconds to import: not for --help
    from qplan.jobs.report import run_report  # noqa: PLC0415

    reported = run_report(plan, home, lang, say)
    answer(language=lang.value, html=str(reported.page), markdown=str(reported.short))
    for path in (reported.page, reported.short):
        out.print(f"{path}", soft_wrap=True)
