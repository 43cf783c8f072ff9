"""Runs commands in this process: torch is imported once."""

from __future__ import annotations

import json
import os
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from qplan.cli.main import main

ANALYZE = (
    *("--samples", "4", "--seq-len", "64", "--batch-size", "2"),
    *("--fit-tokens", "2048", "--formats", "fp16,int8,int6,int4"),
)
"""Options of an analysis that is over in seconds."""


@dataclass(frozen=True)
class Done:
    """What a command left behind."""

    returncode: int
    stdout: str
    stderr: str

    @property
    def document(self) -> dict[str, Any]:
        """Standard output as the one JSON object that it should be."""
        found = json.loads(self.stdout)
        assert isinstance(found, dict)
        return found


def qplan(*arguments: str, folder: Path, columns: int = 80) -> Done:
    code: object = 0
    with (
        redirect_stdout(StringIO()) as out,
        redirect_stderr(StringIO()) as err,
        mock.patch.dict(os.environ),
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.chdir(folder)
        patch.setenv("COLUMNS", str(columns))
        patch.setattr(sys, "argv", ["qplan", *arguments])
        try:
            main()
        except SystemExit as end:
            code = end.code or 0
    assert isinstance(code, int)
    return Done(code, out.getvalue(), err.getvalue())


def succeed(*arguments: str, folder: Path) -> str:
    """Run a command that must succeed; what it printed."""
    done = qplan(*arguments, folder=folder)
    assert done.returncode == 0, done.stderr
    return done.stdout
