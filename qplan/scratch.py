"""Temporary files and folders, and the removal of those whose owner was killed.

Their names hold the owner's process id, and the owner holds a lock on each: what is left by a process that is gone is
told from what another qplan is at work on, in this container or in another one.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import TracebackType

_NAME = re.compile(r"(?:qplan-[a-z]+|\..*\.qplan)-(\d{1,10})-\w{8}(?:\.\w+)?")


class Scratch:
    """A temporary folder, which its owner removes: when told to, when this is dropped, or at exit.

    A forked process holds it as well and never removes it.
    """

    def __init__(self, purpose: str = "", *, beside: Path | None = None) -> None:
        """Make it.

        Args:
            purpose: a word of small letters for its name in the temporary folder.
            beside: make it a hidden folder next to this path instead, so that what it holds can be moved there.
        """
        prefix = f"qplan-{purpose}-{os.getpid()}-" if beside is None else sibling_prefix(beside)
        self.folder = Path(tempfile.mkdtemp(dir=None if beside is None else beside.parent, prefix=prefix))
        handle = os.open(self.folder, os.O_RDONLY | os.O_CLOEXEC)
        lock(handle)
        self._finish = weakref.finalize(self, _remove, self.folder, handle, os.getpid())

    def remove(self) -> None:
        """Remove it; nothing happens the second time."""
        self._finish()

    def __enter__(self) -> Path:
        """Return its path."""
        return self.folder

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Remove it."""
        self.remove()


def sibling_prefix(path: Path) -> str:
    """How the name of a temporary sibling of ``path`` begins; random letters and a suffix follow."""
    return f".{path.name[:40]}.qplan-{os.getpid()}-"


def lock(handle: int) -> bool:
    """Lock an open file or folder until it is closed; False if another process has it, or files cannot be locked."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def remove_leftovers(folder: Path, *, deep: bool = False) -> int:
    """Remove what killed processes left in a folder.

    Args:
        folder: it need not exist.
        deep: also look into the folders that it holds.

    Returns:
        How many files and folders were removed.
    """
    removed = 0
    for path in list(_named(folder, deep=deep)):
        with suppress(OSError):  # another user's, another command's, or already gone
            removed += _remove_leftover(path)
    return removed


def remove_leftovers_told(folder: Path, say: Callable[[str], None], *, deep: bool) -> None:
    """`remove_leftovers`, with a line about what was removed."""
    removed = remove_leftovers(folder, deep=deep)
    if removed:
        say(f"removed {removed} temporary file(s) and folder(s) of killed commands from {folder}")


def _named(folder: Path, *, deep: bool) -> Iterator[Path]:
    for parent, folders, files in os.walk(folder):
        found = [name for name in (*folders, *files) if _NAME.fullmatch(name)]
        yield from (Path(parent) / name for name in found)
        folders[:] = [name for name in folders if name not in found] if deep else []


def _remove_leftover(path: Path) -> bool:
    """Remove a file or folder, unless its owner may live."""
    match = _NAME.fullmatch(path.name)
    if match is None or _lives(int(match[1])):
        return False
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if os.fstat(handle).st_uid != os.geteuid() or not lock(handle):
            return False
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
    finally:
        os.close(handle)
    return True


def _lives(process: int) -> bool:
    """Whether there is another process of this number: in a container, this one may well have its predecessor's."""
    if process == os.getpid():
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def _remove(folder: Path, handle: int, owner: int) -> None:
    try:
        if os.getpid() == owner:
            shutil.rmtree(folder)
    except FileNotFoundError:
        pass
    except BaseException:  # a signal in the midst of it; nobody would come back for the rest
        shutil.rmtree(folder, ignore_errors=True)
        raise
    finally:
        os.close(handle)
