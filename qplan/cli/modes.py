"""The options that every command has: ``--quiet`` and ``--json``."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable
from contextlib import nullcontext, redirect_stdout
from typing import Annotated

import typer

from qplan.artifact import FULL
from qplan.cli import console, panels
from qplan.cli.signals import interruption
from qplan.cli.tidy import tidy_temporary
from qplan.errors import InputError

Quiet = Annotated[
    bool, typer.Option("--quiet", help="Print errors only; scripts read the exit code.", rich_help_panel=panels.OUTPUT)
]
Json = Annotated[
    bool,
    typer.Option(
        "--json",
        help="Print one JSON object on stdout, for scripts; messages stay on stderr.",
        rich_help_panel=panels.OUTPUT,
    ),
]


def with_modes(name: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command ``--quiet`` and ``--json``; it prints through `qplan.cli.console` and knows neither.

    Args:
        name: the command's name, for its JSON object.
    """

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        signature = inspect.signature(function, eval_str=True)

        @functools.wraps(function)
        def command(*args: object, quiet: bool, json_: bool, **options: object) -> None:
            _choose_mode(name, quiet=quiet, json_=json_)
            tidy_temporary()
            try:
                # what libraries print must not mix with the object
                with redirect_stdout(sys.stderr) if json_ else nullcontext():
                    function(*args, **options)
            except KeyboardInterrupt as stop:
                raise interruption(stop) from None
            except OSError as error:
                raise _unusable(error) from error

        added = [
            inspect.Parameter(option, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=annotation)
            for option, annotation in (("quiet", Quiet), ("json_", Json))
        ]
        parameters = [*signature.parameters.values(), *added]
        command.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters} | {"return": None}
        return command

    return decorate


def _unusable(error: OSError) -> Exception:
    """What a file or folder that the system refuses means: bad input; other errors, such as a server's, as they are."""
    if error.filename is None or error.errno in FULL:
        return error
    remedy = "check the name and its permissions, or give another"
    return InputError(f"{error.filename} cannot be used: {error.strerror}; {remedy}")


def _choose_mode(name: str, *, quiet: bool, json_: bool) -> None:
    """Start a command in the mode that the user chose.

    Raises:
        InputError: the user chose two.
    """
    console.start(name)
    if quiet and json_:
        msg = "--quiet --json: one prints nothing, the other an object; give one of them"
        raise InputError(msg)
    if json_ or quiet:
        console.use(console.Mode.json if json_ else console.Mode.quiet)
