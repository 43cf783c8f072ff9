"""Runs qplan's commands as a user types them."""

from __future__ import annotations

import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

import pytest

from qplan.cli.main import main


@dataclass(frozen=True)
class Done:
    """What a command left behind on the terminal."""

    returncode: int
    stdout: str
    stderr: str


def qplan(*arguments: str, folder: Path) -> Done:
    """Run a command in this process: torch is imported once. Engine and exporter have processes of their own."""
    code = 0
    with redirect_stdout(StringIO()) as out, redirect_stderr(StringIO()) as err, pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "argv", ["qplan", *arguments])
        try:
            main()
        except SystemExit as end:
            code = int(end.code or 0)
    return Done(code, out.getvalue(), err.getvalue())


def succeed(*arguments: str, folder: Path) -> str:
    """Run a command that must succeed; what it printed."""
    done = qplan(*arguments, folder=folder)
    assert done.returncode == 0, done.stderr
    return done.stdout
