"""The ``qplan`` command."""

from __future__ import annotations

import sys

import typer
from rich.markup import escape

from qplan import __version__
from qplan.cli import analyze, check, compat, demo, emit, explain, frontier, ladder, plan, profile, report
from qplan.cli.console import err
from qplan.errors import QplanError

app = typer.Typer(
    help="Mixed-precision quantization planner for MNN language models.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_show_locals=False,
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
    version: bool = typer.Option(  # noqa: FBT001
        False,  # noqa: FBT003
        "--version",
        callback=_version,
        is_eager=True,
        help="Print the version.",
    ),
) -> None:
    """Measure what every bit width costs, plan under a budget, build the MNN model, prove it on the engine."""


def main() -> None:
    """Run a command; errors that qplan raises on purpose become one message and their exit code."""
    try:
        app()
    except QplanError as error:
        err.print("[bold red]error:[/bold red]", escape(str(error)), soft_wrap=True)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        err.print("interrupted; the same command goes on where it was")
        sys.exit(130)
