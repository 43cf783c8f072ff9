"""``qplan check``: what is wrong with a model folder, without loading the engine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from qplan.cli import completion
from qplan.cli.console import answer, out
from qplan.cli.modes import with_modes
from qplan.errors import PreflightError
from qplan.mnn.engines import EngineVersion

if TYPE_CHECKING:
    from qplan.mnn.preflight import Preflight


@with_modes("check")
def command(
    folder: Annotated[
        Path, typer.Argument(help="Folder of an MNN model, whoever made it.", autocompletion=completion.mnn_folders)
    ],
    engine: Annotated[
        str | None,
        typer.Option(
            metavar="VERSION", help="MNN version to check for, e.g. `3.5.0`.", show_default="the installed one"
        ),
    ] = None,
    full: Annotated[bool, typer.Option("--full", help="Read all scales instead of samples: seconds per GB.")] = False,
) -> None:
    """Check an MNN model for everything known to crash the engine or to make it output garbage.

    Examples:
        qplan check qplan-runs/my-model/int8/model
        qplan check my-export --engine 3.5.0 --full
    """
    version = None if engine is None else EngineVersion.parse(engine)
    from qplan.mnn.preflight import check_folder  # noqa: PLC0415 - NumPy: not for --help

    result = check_folder(folder, version, full=full)
    answer(
        model=str(folder),
        engine=str(result.engine),
        ok=not result.errors,
        findings=[finding.to_json() for finding in result.findings],
    )
    show(result)
    if result.errors:
        codes = ", ".join(sorted({finding.code for finding in result.errors}))
        msg = f"{folder} would not run right on engine {result.engine}: {codes}"
        raise PreflightError(msg)


def show(result: Preflight) -> None:
    """Print findings for people."""
    for finding in result.findings:
        color = "bold red" if finding.severity == "error" else "yellow"
        out.print(
            Text.assemble((finding.severity, color), f" {finding.code}: {finding.where}"),
            soft_wrap=True,
        )
        for label, text in (("what", finding.what), ("engine", finding.effect), ("remedy", finding.remedy)):
            out.print(Text.assemble("  ", (f"{label + ':':8}", "dim"), text), soft_wrap=True)
    if not result.findings:
        out.print(f"nothing found: {result.folder} for engine {result.engine}", soft_wrap=True)
