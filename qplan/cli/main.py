"""The ``qplan`` command."""

from __future__ import annotations

import os
import re
import sys
import tempfile
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

import typer

from qplan import __version__
from qplan.artifact import FULL
from qplan.cli import (
    analyze,
    bench,
    check,
    compat,
    console,
    demo,
    emit,
    engines,
    eval,  # noqa: A004 - the command's own name
    explain,
    frontier,
    ladder,
    panels,
    plan,
    profile,
    quantize,
    report,
    run,
)
from qplan.cli.app import App
from qplan.cli.elsewhere import options_of, with_homes
from qplan.cli.signals import InterruptedCommand, interruption, signals_interrupt
from qplan.errors import InputError, QplanError, StorageError
from qplan.run.damage import RunFolderWarning

_UsageError: Any = typer.BadParameter.__mro__[1]
"""Base class of typer's errors about a command line, which typer does not export by name."""

_BAD_INPUT = 2

_OUT_OF_MEMORY = re.compile(r"OutOfMemoryError|can't allocate memory")
"""In what torch raises on processors and on GPUs."""

_SHOWS = frozenset({"--help", "-h", "--version", "--show-completion", "--install-completion"})
"""Options that print text even with ``--json``."""

app = App(
    no_args_is_help=True,
    context_settings={"help_option_names": ["--help", "-h"]},
    pretty_exceptions_enable=False,
)
app.command("quantize")(quantize.command)
app.command("run")(run.command)
app.command("bench")(bench.command)
app.command("eval")(eval.command)
app.command("analyze")(analyze.command)
app.add_typer(plan.app, name="plan")
app.command("emit")(emit.command)
app.command("demo")(demo.command)
app.command("frontier")(frontier.command)
app.command("report")(report.command)
app.command("profile")(profile.command)
app.command("explain")(explain.command)
app.command("check")(check.command)
app.command("ladder")(ladder.command)
app.add_typer(compat.app, name="compat")
app.add_typer(engines.app, name="engines")


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
        qplan quantize Qwen/Qwen2.5-0.5B-Instruct --budget int4
        qplan run Qwen2.5-0.5B-Instruct-int4-MNN "Hello"
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
        console.let_children_print_utf8()
    console.begin()
    wants_json = "--json" in typed
    try:
        with console.remarked(RunFolderWarning), _shortage_told(), signals_interrupt():
            code = int(app(typed, prog_name="qplan", standalone_mode=False) or 0)
    except InterruptedCommand as stop:
        _stop(stop, as_json=wants_json)
    except (KeyboardInterrupt, typer.Abort) as stop:  # before the command began; typer makes one of the other
        _stop(interruption(stop.__cause__ or stop), as_json=wants_json)
    except QplanError as error:
        told = with_homes(str(error), console.running(), _owners())
        console.error(told)
        _end(error, error.exit_code, as_json=wants_json, told=told)
    except _UsageError as error:
        told = error.format_message()
        if error.ctx is not None:
            usage, path = error.ctx.get_usage(), error.ctx.command_path
            console.alarm.print(f"{usage}\nHelp:  {path} --help", soft_wrap=True)
            told = with_homes(told, path.removeprefix("qplan").strip(), _owners())
        console.error(told)
        _end(error, _BAD_INPUT, as_json=wants_json, told=told)
    except Exception as error:
        if wants_json:  # a bug: scripts get their object, people the traceback
            traceback.print_exc()
            _end(error, 1, as_json=True)
        raise
    _end(None, code, as_json=wants_json and not _SHOWS.intersection(typed))


def _owners(known: App = app) -> dict[str, set[str]]:
    """Names of the commands that have an option, by option."""
    return options_of(typer.main.get_command(known))


def _stop(stop: InterruptedCommand, *, as_json: bool) -> NoReturn:
    """End with a message, though there may be nobody left to read it."""
    try:
        console.error(str(stop))
        _end(stop, stop.exit_code, as_json=as_json)
    except OSError:  # a terminal that was closed; what is buffered for it must not change the exit code
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        os.dup2(nowhere, 2)
        sys.exit(stop.exit_code)


@contextmanager
def _shortage_told() -> Iterator[None]:
    """Name a full disk that nothing closer to it named, such as that of the temporary folder, and a lack of memory.

    Raises:
        StorageError: a disk is full.
        InputError: the system gives this process no more memory.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and not _OUT_OF_MEMORY.search(f"{type(error).__name__}: {error}"):
            raise
        first = (str(error).strip().splitlines() or ["out of memory"])[0]
        msg = (
            f"no memory is left for this command: {first}. Free some, raise what limits it (such as ulimit -v), or let "
            "it take less: --max-memory of analyze and emit, --batch-size of analyze. What is done is kept"
        )
        raise InputError(msg) from error
    except OSError as error:
        if error.errno not in FULL:
            raise
        where = error.filename or f"standard output, or a file in the temporary folder {tempfile.gettempdir()},"
        msg = f"{where} cannot be written: {error.strerror}; free space there, write elsewhere, or set TMPDIR"
        raise StorageError(msg) from error


def _end(error: Exception | None, code: int, *, as_json: bool, told: str = "") -> NoReturn:
    if as_json:
        message = told or getattr(error, "format_message", error.__str__)()
        found = None if error is None else {"kind": type(error).__name__, "message": message, "exit_code": code}
        _write(console.answer_as_json(code, found) + "\n")
    _write("")
    sys.exit(code)


def _write(text: str) -> None:
    """Write to standard output at once, while an error can still be told."""
    if sys.stdout is None:  # closed by whoever started this
        return
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except OSError as error:
        gone = isinstance(error, BrokenPipeError)
        if not gone:
            console.error(f"standard output cannot be written: {error.strerror}")
        console.silence()
        full = error.errno in FULL
        sys.exit(console.BROKEN_PIPE if gone else StorageError.exit_code if full else _BAD_INPUT)
