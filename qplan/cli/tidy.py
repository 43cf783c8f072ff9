"""Removes what killed commands left."""

from __future__ import annotations

import tempfile
from pathlib import Path

from qplan.cli.console import say
from qplan.run.folder import RunFolder
from qplan.scratch import remove_leftovers_told


def tidied(run: RunFolder) -> RunFolder:
    """A run, without the unfinished files and folders of commands that were killed."""
    remove_leftovers_told(run.folder, say, deep=True)
    return run


def tidy_temporary() -> None:
    """Remove what killed commands of this user left in the temporary folder."""
    remove_leftovers_told(Path(tempfile.gettempdir()), say, deep=False)
