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
from qplan.formats import QuantFormat, parse_formats
from qplan.mnn.arm.home import require_arm
from qplan.mnn.arm.processors import PROCESSORS
from qplan.mnn.engine.venv import ENGINES_FOLDER
from qplan.mnn.engines import EngineVersion

if TYPE_CHECKING:
    from qplan.compat.arm_table import ArmTable
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
    arm: Annotated[
        bool, typer.Option("--arm", help="Show formats on ARM processors instead, as measured under emulation.")
    ] = False,
) -> None:
    """Show which exporter, options, converter and engine go together, as measured.

    Examples:
        qplan compat
        qplan compat --arm
        qplan compat measure --engine 3.5.0
    """
    if context.invoked_subcommand is not None:
        return
    from qplan.compat.arm_table import PACKAGED_ARM, ArmTable  # noqa: PLC0415 - not for --help
    from qplan.compat.table import PACKAGED, CompatTable  # noqa: PLC0415

    if arm:
        formats = ArmTable.read(table or PACKAGED_ARM)
        answer(**asdict(formats) | {"rows": formats.rows_json})
        out.print(_arm(formats))
        return
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
    arm: Annotated[
        bool,
        typer.Option(
            "--arm", help="Measure formats on emulated ARM processors instead; needs `qplan engines add arm`."
        ),
    ] = False,
    formats: Annotated[
        str | None, typer.Option(metavar="LIST", help="Only these formats, with --arm.", show_default="all")
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
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Where the table goes.",
            show_default="qplan-compat.json, or qplan-arm.json",
            rich_help_panel=panels.FOLDERS,
        ),
    ] = None,
) -> None:
    """Measure the table again: pip installs every engine into its own venv, a child process runs each cell.

    Examples:
        qplan compat measure --engine 3.5.0 --engine 3.6.1
        qplan compat measure --architectures --only qwen3
        qplan compat measure --arm --formats int4,int4-b24
    """
    if formats and not arm:
        msg = "--formats is for --arm; leave it out"
        raise InputError(msg)
    if arm and (engine or architectures or only or llmexport):
        msg = "--arm measures formats on the ARM engine alone; leave --engine, --architectures, --only, --llmexport out"
        raise InputError(msg)
    if arm:
        _measure_arm(table or Path("qplan-arm.json"), parse_formats(formats) if formats else None)
        return
    table = table or Path("qplan-compat.json")
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


def _measure_arm(path: Path, formats: tuple[QuantFormat, ...] | None) -> None:
    """Measure formats on every processor that the emulator knows; each row is kept once it is measured."""
    from qplan.compat.arm_table import PACKAGED_ARM, ArmTable  # noqa: PLC0415 - not for --help

    engine = require_arm((), "--arm")
    hosts = {
        name: engine.host(known) for name, known in PROCESSORS.items() if engine.manifest.sme2 or not known.needs_sme
    }
    from qplan.compat.arm import measure_arm  # noqa: PLC0415 - torch takes seconds to import: not for a wrong word

    before = next((known for known in (path, PACKAGED_ARM) if known.is_file()), None)
    after = ArmTable.empty(engine.manifest.mnn, engine.manifest.qemu)
    if before is not None:
        after = ArmTable.read(before).merged(after)
    for row in measure_arm(hosts, say, formats):
        after = after.merged(ArmTable.empty(engine.manifest.mnn, engine.manifest.qemu, row))
        after.write(path)
    answer(file=str(path), **asdict(after) | {"rows": after.rows_json})
    out.print(_arm(after))
    out.print(f"wrote {path}", soft_wrap=True)


def _arm(found: ArmTable) -> Table:
    columns = ("formats", "on processors")
    view = table_view(
        columns,
        left=columns,
        heading=f"Formats on MNN {found.engine} for ARM, memory low, under qemu {found.emulator}, {found.date}",
        note="Precision low and high, dynamic_option 0 and 2, prefill and decode; formats that do alike share a line.",
    )
    for column in view.columns:
        column.no_wrap, column.ratio = False, 1
    for names, shown in found.summary():
        results = dict(zip(found.processors, shown, strict=True))
        faults = [f"{name}: {result}" for name, result in results.items() if result not in ("ok", "")]
        right = [name for name, result in results.items() if result == "ok"]
        told = [Text(f"ok: {', '.join(right)}", "green")] if right else []
        told += [Text(fault, "bold red") for fault in faults]
        view.add_row("\n".join(names), Text("\n").join(told))
    return view


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
