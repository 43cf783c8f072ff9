"""``--dry-run``: what a command is going to take."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from qplan.cli import panels
from qplan.cli.console import answer, out
from qplan.cli.documents import forecast_document
from qplan.errors import InputError

if TYPE_CHECKING:
    from qplan.jobs.outlook import Outlook

DryRun = Annotated[
    bool,
    typer.Option(
        "--dry-run",
        help="Measure this machine for a few seconds, print time, memory and disk of each stage, and stop.",
        rich_help_panel=panels.MACHINE,
    ),
]


def check_alone(ray: str | None) -> None:
    """Refuse to foretell the work of a cluster.

    Raises:
        InputError: one was named.
    """
    if ray is not None:
        msg = f"--dry-run --ray {ray}: only what this machine takes alone is known beforehand; leave one of them out"
        raise InputError(msg)


def show_forecast(outlook: Outlook) -> None:
    """Print what a command takes.

    Raises:
        InputError: this machine has too little memory for it.
        StorageError: it has too little room on a disk.
    """
    from qplan.cli.tables import forecast_table  # noqa: PLC0415 - not for --help

    answer(**forecast_document(outlook))
    out.print(forecast_table(outlook))
    outlook.check()
