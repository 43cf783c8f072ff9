"""One process at a time changes a run folder; those that only read it need not ask."""

from __future__ import annotations

import errno
import fcntl
import functools
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import ParamSpec, TypeVar

from qplan.artifact import writing
from qplan.errors import BusyError
from qplan.run.damage import tell_unlocked
from qplan.run.folder import RunFolder

LOCK_FILE = ".lock"
"""File in a run folder while a command works in it. One that a killed command left behind locks nothing."""

_UNSUPPORTED = frozenset({errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL})
"""What file systems without locks answer."""

P = ParamSpec("P")
T = TypeVar("T")


def alone_in_run(command: str) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Let a job run only while no other process works in its run folder.

    Args:
        command: what the job is called, for the message to others.
    """

    def decorate(job: Callable[P, T]) -> Callable[P, T]:
        @functools.wraps(job)
        def locked(*args: P.args, **kwargs: P.kwargs) -> T:
            run = next(value for value in (*args, *kwargs.values()) if isinstance(value, RunFolder))
            with locked_run(run, command):
                return job(*args, **kwargs)

        return locked

    return decorate


@contextmanager
def locked_run(run: RunFolder, command: str) -> Iterator[None]:
    """Hold a run folder; it is made if need be, and removed again if the block leaves nothing in it.

    Args:
        run: the folder.
        command: what holds it, for the message to others.

    Raises:
        InputError: there can be no folder.
        BusyError: another process holds it.
        StorageError: the disk is full.
    """
    run.check_place()
    missing = [folder for folder in (run.folder, *run.folder.parents) if not folder.exists()]
    path = run.folder / LOCK_FILE
    with writing(path):
        handle = _hold(path)
    try:
        with writing(path):
            since = datetime.now().astimezone().isoformat(timespec="seconds")
            os.ftruncate(handle, 0)
            os.write(handle, json.dumps({"pid": os.getpid(), "command": command, "since": since}).encode())
        yield
    finally:
        _release(path, handle)
        with suppress(OSError):  # not empty
            for folder in missing:
                folder.rmdir()


def _hold(path: Path) -> int:
    """Open and lock the file.

    Raises:
        BusyError: another process did.
    """
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _UNSUPPORTED:
                tell_unlocked(path.parent, str(error.strerror))
                return handle
            holder = _holder(handle)
            os.close(handle)
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                raise
            msg = (
                f"{path.parent} is being changed by {holder}; wait until it is done, end it, or use another run folder "
                "(--run DIR)"
            )
            raise BusyError(msg) from None
        # the holder before may have removed the file between opening and locking it
        with suppress(FileNotFoundError):
            if os.stat(path).st_ino == os.fstat(handle).st_ino:  # noqa: PTH116 - beside fstat
                return handle
        os.close(handle)


def _release(path: Path, handle: int) -> None:
    try:
        path.unlink(missing_ok=True)
    except BaseException:  # a signal: nobody would come back for the file
        path.unlink(missing_ok=True)
        raise
    finally:
        os.close(handle)


def _holder(handle: int) -> str:
    """Who wrote into the file, in words."""
    try:
        found = json.loads(os.pread(handle, 4096, 0))
        return f"process {int(found['pid'])} (qplan {found['command']}, since {found['since']})"
    except (KeyError, TypeError, ValueError):  # it is about to write
        return "another process"
