"""Every command of the program, as typer built it."""

from __future__ import annotations

from collections.abc import Sequence
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


def parses(words: Sequence[str]) -> None:
    """Parse a command line as typer would, without running it.

    Raises:
        Exception: typer's, with what it does not understand.
    """
    command, left = typer.main.get_command(app), list(words)
    while hasattr(command, "commands") and left and left[0] in command.commands:
        command, left = command.commands[left[0]], left[1:]
    if not {"--install-completion", "--show-completion", "--version", "--help"} & set(left):
        command.make_context("qplan", left).close()
