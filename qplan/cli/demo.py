"""``qplan demo``: the whole job on the embedded model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qplan.choosing.request import PlanRequest
from qplan.cli import completion, panels
from qplan.cli.console import answer, out, say, work_bar
from qplan.cli.documents import analysis_document
from qplan.cli.emit import command_line, show
from qplan.cli.modes import with_modes
from qplan.cli.report import Lang
from qplan.cli.tidy import tidied
from qplan.jobs.options import AnalyzeOptions, EmitOptions
from qplan.planner.budget import parse_budgets
from qplan.run.folder import RUNS, RunFolder

CALIB, SAMPLES, SEQ_LEN = "python-stdlib", 8, 256
"""Calibration of the demo: text of the kind that the model was trained on, 256 tokens at a time."""


@with_modes("demo")
def command(
    budget: Annotated[
        str,
        typer.Option(
            metavar="BUDGET", help="As for emit.", autocompletion=completion.budgets, rich_help_panel=panels.LIMITS
        ),
    ] = PlanRequest.budgets[0].text,
    folder: Annotated[
        Path, typer.Option(metavar="FOLDER", help="Where runs go.", rich_help_panel=panels.FOLDERS)
    ] = RUNS,
    lang: Lang = EmitOptions.language,
) -> None:
    """Analyze, plan, build and prove the embedded model: all of qplan in minutes, offline.

    Examples:
        qplan demo
        qplan demo --budget int4
    """
    wanted = PlanRequest(budgets=parse_budgets([budget]))
    say("the embedded model, 3 million parameters: analyze, plan, build and prove; minutes on two cores")
    # torch and transformers take seconds to import: not for --help, nor for a wrong word
    import qplan.demo  # noqa: PLC0415
    from qplan.cli.tables import sensitivity_table  # noqa: PLC0415
    from qplan.jobs.analyze import run_analyze  # noqa: PLC0415
    from qplan.jobs.emit import run_emit  # noqa: PLC0415

    home = Path(qplan.demo.__file__).parent
    run = tidied(RunFolder(folder / "stdlib-3m"))
    analysis = AnalyzeOptions(model=str(home / "stdlib-3m"), calib=CALIB, samples=SAMPLES, seq_len=SEQ_LEN)
    with work_bar("1 of 2, analyzing") as progress:
        table = run_analyze(analysis, run, say, progress)
    answer(analysis=analysis_document(table, run.sensitivity))
    out.print(sensitivity_table(table))
    with work_bar("2 of 2, planning and building") as progress:
        options = EmitOptions(wanted=wanted, text=str(home / "heldout.txt"), language=lang)
        emitted = run_emit(options, run, say, progress, command_line())
    show(emitted)
