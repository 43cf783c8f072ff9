"""The ``qplan`` command."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Sequence
from typing import Any, NoReturn

import typer
from rich.markup import escape

from qplan import __version__
from qplan.cli import (
    analyze,
    check,
    compat,
    console,
    demo,
    emit,
    explain,
    frontier,
    ladder,
    panels,
    plan,
    profile,
    report,
)
from qplan.cli.app import App
from qplan.errors import QplanError

_UsageError: Any = typer.BadParameter.__mro__[1]
"""Base class of typer's errors about a command line, which typer does not export by name."""

_BAD_INPUT = 2

_SHOWS = frozenset({"--help", "-h", "--version", "--show-completion", "--install-completion"})
"""Options that print text even with ``--json``."""

app = App(
    no_args_is_help=True,
    context_settings={"help_option_names": ["--help", "-h"]},
    pretty_exceptions_enable=False,
)
app.command("analyze")(analyze.command)
app.command("emit")(emit.command)
app.command("demo")(demo.command)
app.command("frontier")(frontier.command)
app.command("report")(report.command)
app.command("profile")(profile.command)
app.command("explain")(explain.command)
app.add_typer(plan.app, name="plan")
app.command("check")(check.command)
app.command("ladder")(ladder.command)
app.add_typer(compat.app, name="compat")


def _version(value: bool) -> None:  # noqa: FBT001 - typer's callback
    if value:
        typer.echo(f"qplan {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: bool = typer.Option(  # noqa: FBT001, ARG001
        False,  # noqa: FBT003
        "--version",
        callback=_version,
        is_eager=True,
        help="Print the version.",
        rich_help_panel=panels.OUTPUT,
    ),
) -> None:
    """Mixed-precision quantization planner for MNN language models.

    Measure what every bit width costs, plan under a budget, build the MNN model, prove it on the engine.

    Examples:
        qplan demo
        qplan analyze Qwen/Qwen2.5-0.5B-Instruct
        qplan emit --budget int8
    """
    console.begin()


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command and exit.

    Errors that qplan raises on purpose become one message, or one JSON object, and their exit code.

    Args:
        arguments: words of the command line; None for those of this process.
    """
    typed = list(sys.argv[1:] if arguments is None else arguments)
    if arguments is None:
        console.show_what_streams_can()
    console.begin()
    wants_json = "--json" in typed
    try:
        code = int(app(typed, prog_name="qplan", standalone_mode=False) or 0)
    except QplanError as error:
        console.alarm.print("[bold red]error:[/bold red]", escape(str(error)), soft_wrap=True)
        _end(error, error.exit_code, as_json=wants_json)
    except _UsageError as error:
        from typer.rich_utils import rich_format_error  # noqa: PLC0415 - slow, and rarely needed

        rich_format_error(error)
        _end(error, _BAD_INPUT, as_json=wants_json)
    except Exception as error:
        if wants_json:  # a bug: scripts get their object, people the traceback
            traceback.print_exc()
            _end(error, 1, as_json=True)
        raise
    _end(None, code, as_json=wants_json and not _SHOWS.intersection(typed))


def _end(error: Exception | None, code: int, *, as_json: bool) -> NoReturn:
    if as_json:
        message = getattr(error, "format_message", error.__str__)()
        found = None if error is None else {"kind": type(error).__name__, "message": message, "exit_code": code}
        sys.stdout.write(console.answer_as_json(code, found) + "\n")
    sys.exit(code)
