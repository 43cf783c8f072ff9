"""Memory that is free, and memory that is held."""

from __future__ import annotations

import os
from pathlib import Path

_MEMINFO = Path("/proc/meminfo")
_GROUP = Path("/sys/fs/cgroup")
"""Where Linux says how much memory the processes of a container may take together."""


def free_memory() -> int:
    """Bytes that this process may still take, counting what other programs' files occupy and give back."""
    free = _available()
    try:
        most = (_GROUP / "memory.max").read_text(encoding="ascii").strip()
        held = int((_GROUP / "memory.current").read_text(encoding="ascii"))
        cached = _named(_GROUP / "memory.stat", "inactive_file")
    except (OSError, ValueError):
        return free
    return min(free, max(0, int(most) - held + cached)) if most.isdecimal() else free


def most_memory(limit: int | None) -> int:
    """Bytes that a command may take of this machine: a limit, but no more than is free."""
    free = free_memory()
    return free if limit is None else min(limit, free)


def held_memory() -> int:
    """Bytes of memory that this process holds; 0 where the system does not report it."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except (OSError, ValueError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def existing(folder: Path) -> Path:
    """The folder, or the nearest above it that is there."""
    folder = folder.resolve()
    return next(path for path in (folder, *folder.parents) if path.is_dir())


def _available() -> int:
    try:
        return 1024 * _named(_MEMINFO, "MemAvailable:")
    except (OSError, ValueError):
        pages = "SC_AVPHYS_PAGES" if "SC_AVPHYS_PAGES" in os.sysconf_names else "SC_PHYS_PAGES"
        return os.sysconf(pages) * os.sysconf("SC_PAGE_SIZE")


def _named(path: Path, name: str) -> int:
    """The number behind a name in a file of names and numbers.

    Raises:
        ValueError: no such name.
    """
    for line in path.read_text(encoding="ascii").splitlines():
        words = line.split()
        if words[:1] == [name]:
            return int(words[1])
    msg = f"{path} does not name {name}"
    raise ValueError(msg)
