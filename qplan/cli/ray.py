"""``--ray`` of the commands that can work on many machines."""

from __future__ import annotations

from typing import Annotated

import typer

from qplan.cli import panels

RayOption = Annotated[
    str | None,
    typer.Option(
        metavar="ADDRESS",
        help="Work on the machines of a running Ray cluster: `auto` for the one that this machine belongs to, or "
        "`HOST:PORT` of its head.",
        show_default="this machine alone",
        autocompletion=lambda: ["auto"],
        rich_help_panel=panels.MACHINE,
    ),
]
