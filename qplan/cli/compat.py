"""``qplan compat``: which exporter, options, converter and engine go together, as measured."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.table import Table

from qplan.cli.console import out, say
from qplan.errors import InputError

if TYPE_CHECKING:
    from qplan.mnn.compat import CompatTable

app = typer.Typer(invoke_without_command=True)

_MARKS = {
    "ok": "[green]ok[/green]",
    "wrong": "[bold red]wrong[/bold red]",
    "export fails": "[yellow]no export[/yellow]",
}


@app.callback()
def show(
    context: typer.Context,
    table: Annotated[Path | None, typer.Option(help="Another table than the packaged one.")] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show which exporter, options, converter and engine go together, as measured.

    Example: `qplan compat`, or `qplan compat measure` to measure it again
    """
    if context.invoked_subcommand is not None:
        return
    from qplan.mnn.compat import PACKAGED, CompatTable  # noqa: PLC0415 - not for --help

    found = CompatTable.read(table or PACKAGED)
    if json_:
        typer.echo(json.dumps(asdict(found), indent=1))
        return
    if found.cells:
        out.print(_engines(found))
    if found.architectures:
        out.print(_architectures(found))


@app.command("measure")
def measure(
    architectures: Annotated[
        bool, typer.Option("--architectures", help="Measure architectures on the installed engine instead of engines.")
    ] = False,
    venvs: Annotated[Path, typer.Option(help="Where virtual environments with older engines go.")] = Path(
        "qplan-engines"
    ),
    engine: Annotated[list[str] | None, typer.Option(help="Only these versions.  [default: all on PyPI]")] = None,
    only: Annotated[list[str] | None, typer.Option(help="Only these architectures.")] = None,
    llmexport: Annotated[Path | None, typer.Option(help="A MNN checkout whose exporter to measure.")] = None,
    table: Annotated[Path, typer.Option(help="Where the table goes.")] = Path("qplan-compat.json"),
) -> None:
    """Measure the table again: pip installs every engine into a venv of its own, a child process runs each cell.

    Example: `qplan compat measure --engine 3.5.0 --engine 3.6.1`
    """
    # torch and transformers take seconds to import: not for --help
    from qplan.mnn.compat import PACKAGED, CompatTable  # noqa: PLC0415
    from qplan.mnn.engines import EngineVersion  # noqa: PLC0415
    from qplan.model.specimen import SPECIMENS  # noqa: PLC0415
    from qplan.pipeline.compat import measure_architectures, measure_engines, merged  # noqa: PLC0415

    if only and not architectures:
        msg = "--only is for --architectures; choose engines with --engine"
        raise InputError(msg)
    known = table if table.is_file() else PACKAGED
    before = CompatTable.read(known) if known.is_file() else None
    if architectures:
        measured = list(measure_architectures(say, tuple(only or SPECIMENS), llmexport))
        after = merged(before, [], measured)
    else:
        versions = tuple(EngineVersion.parse(text) for text in engine) if engine else None
        after = merged(before, list(measure_engines(venvs, say, versions, llmexport)), [])
    after.write(table)
    out.print(_architectures(after) if architectures else _engines(after))
    out.print(f"wrote {table}", markup=False)


def _engines(found: CompatTable) -> Table:
    dates = sorted({cell.date for cell in found.cells})
    when = " to ".join(dict.fromkeys((dates[0], dates[-1])))
    view = Table(
        title=f"Models on engines, {found.platform}, measured {when}",
        caption="the worst of a tied and an untied model, memory normal and low, prefill and decode",
        box=SIMPLE_HEAD,
        padding=(0, 0),
    )
    for column in ("exporter", "options", "converter"):
        view.add_column(column)
    for engine in found.engines:
        view.add_column(engine)
    for (exporter, options, converter), by_engine in found.rows().items():
        cells = [by_engine.get(engine) for engine in found.engines]
        view.add_row(exporter, options, converter, *("-" if cell is None else _mark(cell.outcome) for cell in cells))
    return view


def _architectures(found: CompatTable) -> Table:
    columns = list(dict.fromkeys((cell.exporter, cell.tokens) for cell in found.architectures))
    cells = {(cell.architecture, cell.exporter, cell.tokens): cell for cell in found.architectures}
    first = found.architectures[0]
    view = Table(
        title=f"Architectures at fp16 on engine {first.engine} against transformers {first.transformers}",
        caption=f"tiny random models, measured {first.date}; relative error of the logits, by length of the sequence",
        box=SIMPLE_HEAD,
        padding=(0, 0),
    )
    view.add_column("architecture")
    for exporter, tokens in sorted(columns):
        view.add_column(f"{exporter}, {tokens} tokens")
    for name in dict.fromkeys(cell.architecture for cell in found.architectures):
        row = [cells.get((name, *column)) for column in sorted(columns)]
        view.add_row(
            name,
            *(
                "-" if cell is None else f"{_mark(cell.outcome)}{'' if cell.error is None else f' {cell.error:.1e}'}"
                for cell in row
            ),
        )
    return view


def _mark(outcome: str) -> str:
    return _MARKS.get(outcome, f"[bold red]{outcome}[/bold red]")
