"""Removes what killed commands left."""

from __future__ import annotations

import tempfile
from pathlib import Path

from qplan.cli.console import say
from qplan.run.folder import RunFolder
from qplan.scratch import remove_leftovers


def tidied(run: RunFolder) -> RunFolder:
    """A run, without the unfinished files and folders of commands that were killed."""
    _tidy(run.folder, deep=True)
    return run


def tidy_temporary() -> None:
    """Remove what killed commands of this user left in the temporary folder."""
    _tidy(Path(tempfile.gettempdir()), deep=False)


def _tidy(folder: Path, *, deep: bool) -> None:
    removed = remove_leftovers(folder, deep=deep)
    if removed:
        say(f"removed {removed} temporary file(s) and folder(s) of killed commands from {folder}")
