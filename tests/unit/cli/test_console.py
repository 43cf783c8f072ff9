"""Names and texts from outside are data in a terminal: printed or visibly escaped, never obeyed."""

from __future__ import annotations

import subprocess
import sys
from io import StringIO
from pathlib import Path

import pytest

from qplan.cli import console
from qplan.cli.console import Terminal
from qplan.errors import StorageError


def test_control_characters_are_shown_and_not_obeyed() -> None:
    written = StringIO()
    Terminal(file=written, force_terminal=True, color_system="standard", highlight=False, width=80).print(
        "a\x1b[31mb\x00c\x9b", style="red", markup=False
    )
    assert r"a\x1b[31mb\x00c\x9b" in written.getvalue()
    assert written.getvalue().startswith("\x1b["), "its own colors stay"


def test_markup_in_a_progress_line_is_text(monkeypatch: pytest.MonkeyPatch) -> None:
    written = StringIO()
    monkeypatch.setattr(console, "err", Terminal(file=written, width=80))
    console.say("loading [red]x[/red] and [/]")
    assert "loading [red]x[/red] and [/]" in written.getvalue()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
def test_a_full_disk_is_told_and_is_no_bug() -> None:
    code = "from qplan.cli.main import main; main(['emit', '--budget', 'int44', '--json'])"
    with Path("/dev/full").open("w") as full:
        done = subprocess.run([sys.executable, "-c", code], stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == StorageError.exit_code
    assert "No space left" in done.stderr
    assert "Traceback" not in done.stderr
