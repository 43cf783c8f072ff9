"""``qplan report``: a plan's report again, from what its run holds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qplan.cli.console import out, say
from qplan.report.words import Language

Lang = Annotated[
    Language, typer.Option("--lang", help="Language of the report: English or Chinese.", case_sensitive=False)
]
"""``--lang`` of every command that writes a report."""


def command(
    plan: Annotated[
        str | None,
        typer.Argument(help="A plan.json, its folder, or a budget of the run.  [default: the newest plan]"),
    ] = None,
    run: Annotated[Path | None, typer.Option(help="Run folder.  [default: the plan's, else the latest]")] = None,
    lang: Lang = Language.en,
) -> None:
    """Write `report.html` and `report.md` again, in any language, without building or measuring.

    Example: `qplan report int4 --lang zh`
    """
    # pandas, scipy and torch take seconds to import: not for --help
    from qplan.pipeline.report import run_report  # noqa: PLC0415
    from qplan.pipeline.runs import Run  # noqa: PLC0415

    reported = run_report(plan, None if run is None else Run(run), lang, say)
    for path in (reported.page, reported.short):
        out.print(f"{path}", markup=False, soft_wrap=True)
