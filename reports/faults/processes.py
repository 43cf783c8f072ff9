"""The processes that a command leaves, whoever their parents were."""

from __future__ import annotations

import ctypes
import os
import signal
import time
from contextlib import suppress
from pathlib import Path

_SUBREAPER = 36
"""``PR_SET_CHILD_SUBREAPER``."""


def adopt_orphans() -> None:
    """Have the system give this process the children of those that end before them, so that `descendants` sees them."""
    ctypes.CDLL(None, use_errno=True).prctl(_SUBREAPER, 1, 0, 0, 0)


def descendants() -> dict[int, str]:
    """Command lines of the processes below this one, by number; ended ones are left out."""
    parents, states = {}, {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        except OSError:
            continue
        parents[int(path.parent.name)], states[int(path.parent.name)] = int(fields[1]), fields[0]
    found, below = {}, {os.getpid()}
    while new := {process for process, parent in parents.items() if parent in below} - below:
        below |= new
    for process in below - {os.getpid()}:
        try:
            line = (Path("/proc") / str(process) / "cmdline").read_bytes()
        except OSError:
            continue
        if states[process] not in {"Z", "X"}:
            found[process] = line.replace(b"\0", b" ").decode(errors="replace")
    return found


def left_alive() -> list[str]:
    """Command lines of the processes below this one that are there two seconds later; they are ended then."""
    deadline = time.monotonic() + 2
    while (left := descendants()) and time.monotonic() < deadline:
        time.sleep(0.05)
    for process in left:
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
    for child in Path(f"/proc/self/task/{os.getpid()}/children").read_text(encoding="ascii").split():
        with suppress(ChildProcessError):  # adopted and ended: nobody else waits for it
            os.waitpid(int(child), os.WNOHANG)
    return list(left.values())
