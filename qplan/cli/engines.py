"""``qplan engines``: engines beside the installed one, such as MNN's for ARM under emulation."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from qplan.cli.app import App
from qplan.cli.console import answer, out, say
from qplan.cli.modes import with_modes
from qplan.errors import InputError
from qplan.mnn.arm.processors import PROCESSORS

app = App(invoke_without_command=True)

_ARM = "arm"

EngineName = Annotated[str, typer.Argument(metavar="ENGINE", help="`arm`, MNN's engine for ARM under emulation.")]


@app.callback()
@with_modes("engines")
def show(context: typer.Context) -> None:
    """Show the engines beside the installed one: MNN's for ARM under emulation.

    Examples:
        qplan engines
        qplan engines add arm
        qplan engines remove arm
    """
    if context.invoked_subcommand is None:
        _list()


@app.command("list")
@with_modes("engines list")
def show_list() -> None:
    """Show the engines beside the installed one, as `qplan engines` does.

    Examples:
        qplan engines list
    """
    _list()


@app.command("add")
@with_modes("engines add")
def add(
    engine: EngineName,
    mirror: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Debian mirror to fetch from.", show_default="the one of this system's apt"),
    ] = None,
    sme2: Annotated[
        bool, typer.Option("--sme2", help="Take an emulator that also knows SME2, from Debian's unstable suite.")
    ] = False,
) -> None:
    """Fetch MNN's ARM engine into the cache: an emulator and a small arm64 system from Debian, two wheels from pip.

    Nothing is installed. What comes is checked against what Debian signed and what the package index says.

    Examples:
        qplan engines add arm
        qplan engines add arm --sme2
        qplan engines add arm --mirror http://deb.debian.org/debian
    """
    _check(engine)
    from qplan.mnn.arm.add import add_arm  # noqa: PLC0415 - not for --help

    made = add_arm(say, mirror=mirror, sme2=sme2)
    answer(folder=str(made.folder), **asdict(made.manifest))
    out.print(f"MNN {made.manifest.mnn} for ARM is in {made.folder}; qplan emit --prove arm uses it", soft_wrap=True)


@app.command("remove")
@with_modes("engines remove")
def remove(engine: EngineName) -> None:
    """Remove MNN's ARM engine from the cache, and what an interrupted add left there.

    Examples:
        qplan engines remove arm
    """
    _check(engine)
    from qplan.mnn.arm.add import remove_arm  # noqa: PLC0415 - not for --help
    from qplan.mnn.arm.home import arm_folder  # noqa: PLC0415

    removed = remove_arm()
    answer(folder=str(arm_folder()), removed=removed)
    told = f"removed {arm_folder()}" if removed else f"nothing to remove: {arm_folder()} is not there"
    out.print(told, soft_wrap=True)


def _check(engine: str) -> None:
    if engine != _ARM:
        msg = f"engine {engine!r} is unknown; the one that can be added or removed is {_ARM}"
        raise InputError(msg)


def _list() -> None:
    from qplan.mnn.arm.home import ADD_COMMAND, ArmEngine, arm_folder  # noqa: PLC0415 - not for --help

    found = ArmEngine.find()
    answer(
        arm=None
        if found is None
        else {"folder": str(found.folder), **asdict(found.manifest), "problem": found.missing(()) or None},
    )
    if found is None:
        out.print(f"arm: not added ({arm_folder()} is not there); '{ADD_COMMAND}' fetches it", soft_wrap=True)
        return
    manifest = found.manifest
    out.print(
        f"arm: MNN {manifest.mnn}, NumPy {manifest.numpy}, qemu {manifest.qemu}, in {found.folder}", soft_wrap=True
    )
    if found.missing(()):
        out.print(found.missing(()), soft_wrap=True)
    for name, processor in PROCESSORS.items():
        ready = "" if manifest.sme2 or not processor.needs_sme else f"; needs '{ADD_COMMAND} --sme2'"
        out.print(f"  {name:9} {processor.about}{ready}", soft_wrap=True)
