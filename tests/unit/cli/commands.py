"""Every command of the program, as typer built it."""

from __future__ import annotations

from typing import Any

import typer.main

from qplan.cli.main import app


def commands() -> dict[str, Any]:
    """Commands that do something, by name: ``compat``, ``compat measure``, ``plan diff``."""
    found: dict[str, Any] = {}

    def walk(group: Any, above: str) -> None:
        for name, command in group.commands.items():
            nested = hasattr(command, "commands")
            if not nested or command.invoke_without_command:
                found[above + name] = command
            if nested:
                walk(command, f"{above}{name} ")

    walk(typer.main.get_command(app), "")
    return found
