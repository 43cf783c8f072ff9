"""Small disks in memory, which only root can mount."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def small_disk(folder: Path, free: int, fill: Sequence[Path] = ()) -> Iterator[None]:
    """Mount a memory disk on a folder with so many bytes free beside what it is filled with; needs root."""
    size = 4096 * 64 + sum(path.stat().st_size + 8192 for top in fill for path in top.rglob("*"))
    folder.mkdir(parents=True, exist_ok=True)
    _mount("-t", "tmpfs", "-o", f"size={2 * size}", "none", str(folder))
    try:
        for top in fill:
            shutil.copytree(top, folder, dirs_exist_ok=True)
        status = os.statvfs(folder)
        used = (status.f_blocks - status.f_bfree) * status.f_frsize
        resize(folder, used + free)
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def resize(folder: Path, size: int) -> None:
    """Change the size of a memory disk."""
    _mount("-o", f"remount,size={size}", str(folder))


def _mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True, capture_output=True)


def can_mount(folder: Path) -> bool:
    """Whether memory disks can be mounted here."""
    try:
        with small_disk(folder, 4096):
            return True
    except (OSError, subprocess.CalledProcessError):
        return False
