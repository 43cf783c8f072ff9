"""Options that a message names and the command does not have: messages come from jobs that several commands run."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

_OPTION = re.compile(r"(?<![\w'-])--[a-z][a-z0-9-]*(?![\w-]*[A-Z_])")
"""Those of other tools, such as llmexport's, have underscores or capitals."""

_FIRST = ("analyze", "emit")
"""Commands whose options are meant where several have one; ``quantize`` is the one and then the other."""


def with_homes(message: str, command: str, owners: Mapping[str, set[str]]) -> str:
    """A message, with the command of every option that it names, the running command lacks, and it says nothing of.

    Args:
        message: of an error.
        command: that runs, such as ``quantize``.
        owners: names of commands by option, see `options_of`.
    """
    lacking: dict[str, list[str]] = {}
    for option in dict.fromkeys(_OPTION.findall(message)):
        homes = owners.get(option, set())
        if not homes or command in homes or any(_names(message, home) for home in homes):
            continue
        home = next((name for name in _FIRST if name in homes), min(homes))
        lacking.setdefault(home, []).append(option)
    return message.removesuffix("." if lacking else "") + "".join(
        _told(home, options, command) for home, options in lacking.items()
    )


def options_of(group: Any, above: str = "") -> dict[str, set[str]]:  # noqa: ANN401 - typer's group
    """Names of the commands that have an option, by option."""
    found: dict[str, set[str]] = {}
    for name, command in group.commands.items():
        for parameter in command.params:
            for option in (*parameter.opts, *parameter.secondary_opts):
                if option.startswith("--"):
                    found.setdefault(option, set()).add(above + name)
        for option, homes in options_of(command, f"{above}{name} ").items() if hasattr(command, "commands") else ():
            found.setdefault(option, set()).update(homes)
    return found


def _names(message: str, command: str) -> bool:
    """Whether a message speaks of a command; names such as plan and run are words as well."""
    spoken = command if command in _FIRST else f"qplan {command}"
    return re.search(rf"(?<![\w/.-]){spoken}(?![\w/.-])", message) is not None


def _told(home: str, options: list[str], command: str) -> str:
    which = f"{', '.join(options[:-1])} and {options[-1]}" if options[1:] else options[0]
    are, them = ("are options", "them") if options[1:] else ("is an option", "it")
    told = f". {which} {are} of 'qplan {home}'"
    if command != "quantize" or home not in _FIRST:
        return told
    after = "" if home == "emit" else ", then go on with 'qplan emit'"
    return f"{told}: give {them} there{after}; the run is the same"
