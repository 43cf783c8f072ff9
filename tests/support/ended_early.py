"""Runs commands in forked processes, which a signal ends before a chosen change of their files.

A killed command leaves what it had changed so far, so every place where a kill can matter is one of its changes. New
files are written under names of their own and then renamed: a kill while one is written comes before that.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

_CHANGES = {"os.remove": 1, "os.rename": 2, "os.rmdir": 1, "shutil.rmtree": None}
"""What Python says before it changes names in folders, with the place of a folder's handle among the arguments."""

_HEARD = frozenset({*_CHANGES, "open", "subprocess.Popen"})

Asked = Callable[[str, Path], signal.Signals | None]
"""Given a change and the file, below the folder, that it is about: the signal to send before it. A child process that
starts is a change too, ``starts``, about the script that it runs; so is ``open`` of the file that the command reads."""


@dataclass
class Ender:
    """An audit hook that may send this process a signal before any change of names in a folder."""

    folder: Path
    asked: Asked
    reads: Path | None = None
    """A file whose opening counts as a change."""
    _within: bool = field(default=False, init=False)

    def __call__(self, event: str, args: tuple[Any, ...]) -> None:
        """Look at what Python is about to do."""
        if self._within or event not in _HEARD:
            return
        self._within = True
        try:
            number = self._number(event, args)
            if number is not None:
                os.kill(os.getpid(), number)
        finally:
            self._within = False

    def _number(self, event: str, args: tuple[Any, ...]) -> signal.Signals | None:
        if event == "subprocess.Popen":
            words = [Path(os.fsdecode(word)).name for word in args[1]]
            return self.asked("starts", Path(next((word for word in words if word.endswith("_child.py")), words[0])))
        if event == "open":
            if self.reads is None or args[0] != str(self.reads):
                return None
            return self.asked(event, Path(self.reads.name))
        path = Path(os.fsdecode(args[0]))
        place = _CHANGES[event]
        if place is not None and args[place] >= 0:
            path = Path(f"/proc/self/fd/{args[place]}").readlink() / path
        return self.asked(event, path.relative_to(self.folder)) if path.is_relative_to(self.folder) else None


def forked(job: Callable[[], object], told: Path, ender: Ender | None = None) -> int:
    """Run a job in a child of this process, which must not have computed on several threads.

    Args:
        job: what to do there.
        told: file for what it prints.
        ender: what may end it.

    Returns:
        Its exit code, below 0 for the signal that ended it.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about threads of this process, which the child does without
        process = os.fork()
    if not process:
        _be_child(job, told, ender)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def _be_child(job: Callable[[], object], told: Path, ender: Ender | None) -> NoReturn:
    code = 1
    try:
        handle = os.open(told, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, closefd=False) for number in (1, 2))
        if ender is not None:
            sys.addaudithook(ender)
        job()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:  # noqa: BLE001 - nothing of the parent's may run in here
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
