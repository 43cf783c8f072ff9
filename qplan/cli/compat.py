"""``qplan compat``: which exporter, options, converter and engine go together, as measured."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from qplan.cli import panels
from qplan.cli.app import App
from qplan.cli.console import answer, out, say
from qplan.cli.modes import with_modes
from qplan.cli.view import table_view
from qplan.errors import InputError
from qplan.mnn.engine.venv import ENGINES_FOLDER
from qplan.mnn.engines import EngineVersion

if TYPE_CHECKING:
    from qplan.compat.table import CompatTable

app = App(invoke_without_command=True)

_MARKS = {
    "ok": Text("ok", "green"),
    "wrong": Text("wrong", "bold red"),
    "export fails": Text("no export", "yellow"),
}


@app.callback()
@with_modes("compat")
def show(
    context: typer.Context,
    table: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Another table.", show_default="the packaged one")
    ] = None,
) -> None:
    """Show which exporter, options, converter and engine go together, as measured.

    Examples:
        qplan compat
        qplan compat measure --engine 3.5.0
    """
    if context.invoked_subcommand is not None:
        return
    from qplan.compat.table import PACKAGED, CompatTable  # noqa: PLC0415 - not for --help

    found = CompatTable.read(table or PACKAGED)
    answer(**asdict(found))
    if found.cells:
        out.print(_engines(found))
    if found.architectures:
        out.print(_architectures(found))


@app.command("measure")
@with_modes("compat measure")
def measure(
    engine: Annotated[
        list[str] | None, typer.Option(metavar="VERSION", help="Only these versions.", show_default="all on PyPI")
    ] = None,
    architectures: Annotated[
        bool, typer.Option("--architectures", help="Measure architectures on the installed engine instead of engines.")
    ] = False,
    only: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Only these architectures.", show_default="all")
    ] = None,
    llmexport: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", help="An MNN checkout whose exporter to measure.", show_default="the PyPI package"
        ),
    ] = None,
    venvs: Annotated[
        Path,
        typer.Option(
            metavar="FOLDER", help="Where virtual environments with older engines go.", rich_help_panel=panels.FOLDERS
        ),
    ] = ENGINES_FOLDER,
    table: Annotated[
        Path, typer.Option(metavar="FILE", help="Where the table goes.", rich_help_panel=panels.FOLDERS)
    ] = Path("qplan-compat.json"),
) -> None:
    """Measure the table again: pip installs every engine into its own venv, a child process runs each cell.

    Examples:
        qplan compat measure --engine 3.5.0 --engine 3.6.1
        qplan compat measure --architectures --only qwen3
    """
    if only and not architectures:
        msg = "--only is for --architectures; choose engines with --engine"
        raise InputError(msg)
    if engine and architectures:
        msg = "--engine is not for --architectures, which are measured on the installed engine; leave one of them out"
        raise InputError(msg)
    versions = tuple(EngineVersion.parse(text) for text in engine) if engine else None
    from qplan.compat.table import PACKAGED, CompatTable  # noqa: PLC0415
    from qplan.mnn.build.exporter_source import find_exporter  # noqa: PLC0415
    from qplan.model.specimen_sizes import SPECIMENS, check_architectures  # noqa: PLC0415 - not for --help

    check_architectures(only or ())
    find_exporter(llmexport)
    before = CompatTable.read(table if table.is_file() else PACKAGED)
    # torch and transformers take seconds to import: not for a wrong word
    from qplan.compat.architectures import measure_architectures  # noqa: PLC0415
    from qplan.compat.engines import measure_engines  # noqa: PLC0415

    if architectures:
        measured = list(measure_architectures(say, tuple(only or SPECIMENS), llmexport))
        after = before.merged([], measured, tuple(SPECIMENS))
    else:
        after = before.merged(list(measure_engines(venvs, say, versions, llmexport)), [], tuple(SPECIMENS))
    after.write(table)
    answer(file=str(table), **asdict(after))
    out.print(_architectures(after) if architectures else _engines(after))
    out.print(f"wrote {table}", soft_wrap=True)


def _engines(found: CompatTable) -> Table:
    dates = sorted({cell.date for cell in found.cells})
    when = " to ".join(dict.fromkeys((dates[0], dates[-1])))
    columns = ("exporter and options", "converter", *found.engines)
    view = table_view(
        columns,
        left=columns,
        heading=f"Models on engines, {found.platform}, measured {when}",
        note="The worst of a tied and an untied model, memory normal and low, prefill and decode.",
    )
    view.columns[0].no_wrap = False
    last = ""
    for (exporter, options, converter), by_engine in found.rows().items():
        cells = [by_engine.get(engine) for engine in found.engines]
        if exporter != last:
            view.add_row(exporter, style="bold")
        view.add_row(f"  {options}", converter, *("-" if cell is None else _mark(cell.outcome) for cell in cells))
        last = exporter
    return view


def _architectures(found: CompatTable) -> Table:
    columns = sorted(dict.fromkeys((cell.exporter, cell.tokens) for cell in found.architectures))
    cells = {(cell.architecture, cell.exporter, cell.tokens): cell for cell in found.architectures}
    first = found.architectures[0]
    headings = ["architecture", *(exporter.replace(" ", "\n") + f"\n{tokens} tokens" for exporter, tokens in columns)]
    view = table_view(
        headings,
        left=headings,
        heading=f"Architectures at fp16 on engine {first.engine} against transformers {first.transformers}",
        note=f"Tiny random models, measured {first.date}; relative error of the logits.",
    )
    for name in dict.fromkeys(cell.architecture for cell in found.architectures):
        row = [cells.get((name, *column)) for column in columns]
        view.add_row(
            name,
            *(
                "-" if cell is None else _mark(cell.outcome) + ("" if cell.error is None else f" {cell.error:.0e}")
                for cell in row
            ),
        )
    return view


def _mark(outcome: str) -> Text:
    return _MARKS.get(outcome, Text(outcome, "bold red"))
