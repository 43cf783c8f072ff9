"""``qplan demo``: the whole job on the embedded model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qplan.cli.console import out, progress_bar, say
from qplan.cli.emit import command_line, show
from qplan.cli.report import Lang
from qplan.cli.tables import sensitivity_table
from qplan.report.words import Language

SAMPLES, SEQ_LEN = 8, 256
"""Calibration of the demo; the model was trained on 256 tokens at a time."""


def command(
    folder: Annotated[Path, typer.Option(help="Where runs go.")] = Path("qplan-runs"),
    budget: Annotated[str, typer.Option(help="As for emit.")] = "int8",
    lang: Lang = Language.en,
) -> None:
    """Analyze, plan, build and prove the embedded model: all of qplan in minutes, offline."""
    # torch and transformers take seconds to import: not for --help
    import qplan.demo  # noqa: PLC0415
    from qplan.pipeline.analyze import AnalyzeOptions, run_analyze  # noqa: PLC0415
    from qplan.pipeline.emit import EmitOptions, run_emit  # noqa: PLC0415
    from qplan.pipeline.runs import Run  # noqa: PLC0415
    from qplan.pipeline.wanted import Wanted  # noqa: PLC0415

    home = Path(qplan.demo.__file__).parent
    run = Run(folder / "stdlib-3m")
    analysis = AnalyzeOptions(str(home / "stdlib-3m"), samples=SAMPLES, seq_len=SEQ_LEN, restart=False)
    with progress_bar("measuring") as progress:
        table = run_analyze(analysis, run, say, progress)
    out.print(sensitivity_table(table))
    with progress_bar("FP32 reference") as progress:
        options = EmitOptions(Wanted((budget,)), text=str(home / "heldout.txt"), language=lang)
        emitted = run_emit(options, run, say, progress, command_line())
    show(emitted)
