"""SIGTERM and SIGHUP do what Ctrl-C does: everything is cleaned up, and the exit code names the signal."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from qplan.errors import QplanError


class InterruptedCommand(QplanError):  # noqa: N818 - nothing is wrong
    """The user pressed Ctrl-C."""

    exit_code = 130
    cause = "interrupted"

    def __init__(self) -> None:
        """Compose the message."""
        super().__init__(f"{self.cause}; run the same command again to resume")


class TerminatedCommand(InterruptedCommand):
    """SIGTERM came: from `kill`, a scheduler, or a machine that shuts down."""

    exit_code = 143
    cause = "terminated (SIGTERM)"


class HungUpCommand(InterruptedCommand):
    """SIGHUP came: the terminal was closed, or the connection broke."""

    exit_code = 129
    cause = "the terminal is gone (SIGHUP)"


_KINDS: dict[int, type[InterruptedCommand]] = {signal.SIGTERM: TerminatedCommand, signal.SIGHUP: HungUpCommand}


class _Signal(KeyboardInterrupt):
    """A signal, on the way that an interrupt takes."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def interruption(error: BaseException | None) -> InterruptedCommand:
    """What a `KeyboardInterrupt` is told as."""
    return _KINDS[error.number]() if isinstance(error, _Signal) else InterruptedCommand()


@contextmanager
def signals_interrupt() -> Iterator[None]:
    """Have SIGTERM and SIGHUP raise a `KeyboardInterrupt`, unless they are ignored (nohup) or handled already."""
    if threading.current_thread() is not threading.main_thread():  # Python refuses it there
        yield
        return
    taken = [number for number in _KINDS if signal.getsignal(number) is signal.SIG_DFL]

    def stop(number: int, _frame: object) -> None:
        for other in taken:  # often both come; cleaning up goes on to its end
            signal.signal(other, signal.SIG_IGN)
        raise _Signal(number)

    for number in taken:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number in taken:
            signal.signal(number, signal.SIG_DFL)
