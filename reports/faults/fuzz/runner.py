"""Runs a command line in this process through the entry point of the console script."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, chdir, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import BytesIO, TextIOWrapper
from pathlib import Path
from types import FrameType
from typing import NoReturn
from unittest import mock

from qplan.cli.main import main
from qplan.errors import QplanError

LIMIT_S = 60
"""A case that takes longer hangs; the slowest of those that don't take about 5 s."""

HANGS = -1
"""Exit code that stands for a command which did not end in time."""

BUG = 1
"""Exit code of an exception that nobody foresaw."""


@dataclass(frozen=True)
class Outcome:
    """What a command left behind."""

    code: int
    stdout: str
    stderr: str
    seconds: float


class Hang(BaseException):
    """The command did not end in time. No `Exception`: nothing may catch it."""


class Stopped(QplanError):  # noqa: N818 - nothing is wrong
    """A job of minutes would have begun; all that its options are checked by is done."""

    exit_code = 0


def run(line: Sequence[str], folder: Path, environment: Mapping[str, str] | None = None) -> Outcome:
    """Run a command line in a folder.

    Args:
        line: the words after ``qplan``.
        folder: the current directory.
        environment: variables that are set besides.
    """
    code: object = 0
    printed, complained = BytesIO(), BytesIO()
    began = time.perf_counter()
    with (
        redirect_stdout(TextIOWrapper(printed, encoding="utf-8", write_through=True)) as out,
        redirect_stderr(TextIOWrapper(complained, encoding="utf-8", write_through=True)) as err,
        mock.patch.dict(os.environ, {"COLUMNS": "80", "HF_HUB_OFFLINE": "1"} | dict(environment or {})),
        mock.patch.object(sys, "argv", ["qplan", *line]),
        warnings.catch_warnings(),
        chdir(folder),
        long_jobs_stop(line[0] if line else ""),
    ):
        warnings.simplefilter("default")
        try:
            with limited():
                main()
        except SystemExit as end:
            code = end.code or 0
        except Hang:
            code = HANGS
            traceback.print_exc()
        except BaseException:  # noqa: BLE001 - the exception that this looks for
            code = BUG
            traceback.print_exc()
    seconds = time.perf_counter() - began
    shown, told = (stream.getvalue().decode(errors="replace") for stream in (printed, complained))
    del out, err  # closing them closes what they wrote to
    return Outcome(code if isinstance(code, int) else BUG, shown, told, seconds)


@contextmanager
def limited() -> Iterator[None]:
    """Raise `Hang` after `LIMIT_S`.

    Raises:
        Hang: the block takes longer.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(_number: int, _frame: FrameType | None) -> NoReturn:
        raise Hang

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(LIMIT_S)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def long_jobs_stop(command: str) -> Iterator[None]:
    """Stop the jobs that take minutes whatever their options where they begin: demo, and measuring compatibility."""

    def stop(*_: object, **__: object) -> NoReturn:
        msg = "it would begin here"
        raise Stopped(msg)

    with ExitStack() as patches:
        for seam in _LONG_JOBS.get(command, ()):
            patches.enter_context(mock.patch(seam, stop))
        yield


_LONG_JOBS = {
    "demo": ("qplan.jobs.analyze.run_analyze",),
    "compat": ("qplan.compat.engines.measure_engines", "qplan.compat.architectures.measure_architectures"),
}
