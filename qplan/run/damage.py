"""What is told about a run folder that does not stop a command: damaged files that are made again, no locks."""

from __future__ import annotations

import warnings
from pathlib import Path


class RunFolderWarning(UserWarning):
    """Something about a run folder that a user should know, and that does not stop the command."""


class DamagedCacheWarning(RunFolderWarning):
    """A measurement, a rounded tensor or its like was damaged on disk, is left out, and is made again."""


def tell_damaged(problem: object) -> None:
    """Warn of a damaged file that is made again.

    Args:
        problem: the error that reading it raised, or a sentence.
    """
    warnings.warn(str(problem), DamagedCacheWarning, stacklevel=3)


def tell_unlocked(folder: Path, why: str) -> None:
    """Warn of a file system without locks.

    Args:
        folder: the run folder.
        why: what the file system answered.
    """
    msg = f"{folder} cannot be locked ({why}): see to it that no other qplan works in it"
    warnings.warn(msg, RunFolderWarning, stacklevel=3)
