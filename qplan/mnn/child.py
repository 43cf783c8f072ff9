"""Child processes: everything native runs in one, in its own working folder; an error carries its last output."""

from __future__ import annotations

import os
import re
import selectors
import shlex
import shutil
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO

from qplan.errors import ToolError

TAIL_CHARACTERS = 4000
"""How much of a failed child's output goes into the error."""

MOST_OUTPUT_BYTES = 1 << 20
"""How much of a child's output is kept: its end."""

_LAUNCH = Path(__file__).with_name("launch.py")
_ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def child_command(script: str, arguments: Sequence[str]) -> list[str]:
    """Command line of one of this folder's ``*_child.py`` scripts.

    ``-P`` keeps this folder out of the child's ``sys.path``: its module names must not shadow the exporter's.
    """
    return [sys.executable, "-P", str(Path(__file__).parent / script), *arguments]


class Child(subprocess.Popen[bytes]):
    """A process in a session of its own that ends when this one does, however that ends: see ``launch.py``.

    A forked process holds it as well: there it counts as ended, and nothing is done to it.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        cwd: Path,
        stdin: int = subprocess.DEVNULL,
        stdout: int | IO[bytes] = subprocess.PIPE,
        stderr: int | IO[bytes] = subprocess.STDOUT,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """Start it.

        Args:
            command: path of the program, and its arguments.
            cwd: its working folder.
            stdin: as for `subprocess.Popen`, like the two that follow.
            stdout: where its output goes.
            stderr: where its messages go.
            environment: variables on top of this process's.
        """
        self._owner = os.getpid()
        reading, writing = os.pipe()
        self._cut = weakref.finalize(self, os.close, writing)
        _CHILDREN.add(self)
        try:
            super().__init__(
                [sys.executable, "-I", "-S", str(_LAUNCH), str(reading), *command],
                bufsize=0,  # nothing that a forked process could write once more
                cwd=cwd,
                env=os.environ | dict(environment or {}),
                stdin=stdin,
                stdout=stdout,
                stderr=stderr,
                pass_fds=(reading,),
                start_new_session=True,
            )
        except BaseException:
            self._cut()
            raise
        finally:
            os.close(reading)

    def end(self) -> None:
        """Kill it and what it has started, and wait for its end."""
        self._cut()  # what the watching process waits for
        if self._owner != os.getpid():
            return
        if self.poll() is None:
            with suppress(ProcessLookupError):  # another thread was faster
                os.killpg(self.pid, signal.SIGKILL)
        self.wait()

    def close_streams(self) -> None:
        """Close this side of its pipes."""
        for stream in (self.stdin, self.stdout, self.stderr):
            if stream is not None:
                stream.close()

    def disown(self) -> None:
        """In a forked process: let go of what the parent has open, so that the child sees when the parent closes it."""
        self._cut()
        self.close_streams()
        self.returncode = 0

    def __exit__(
        self, exc_type: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End it."""
        self.end()
        super().__exit__(exc_type, value, traceback)


_CHILDREN: weakref.WeakSet[Child] = weakref.WeakSet()


def _disown_all() -> None:
    for child in list(_CHILDREN):
        if hasattr(child, "stdin"):  # not if another thread was about to start it
            child.disown()


os.register_at_fork(after_in_child=_disown_all)


def run_child(
    script: str,
    arguments: Sequence[str],
    *,
    what: str,
    cwd: Path,
    timeout_s: float,
    environment: Mapping[str, str] | None = None,
    progress: Callable[[str], None] | None = None,
) -> str:
    """Run a script of this folder to its end and return what it printed.

    Args:
        script: its path below this folder.
        arguments: its arguments.
        what: what it does, for the error ("exporting Qwen2 failed").
        cwd: its working folder; tools leave files with fixed names there.
        timeout_s: seconds until it is killed.
        environment: variables on top of this process's.
        progress: called with every line as it appears.

    Raises:
        ToolError: it failed, was killed by a signal, or ran past its time.
    """
    command = child_command(script, arguments)
    shown = shlex.join(command)
    with Child(command, cwd=cwd, environment=environment) as process:
        output, ended = _read(process, time.monotonic() + timeout_s, progress)
    if not ended:
        msg = f"{what}: not done after {timeout_s:g} s, killed; allow more time or look at its last output"
        raise ToolError(msg, command=shown, tail=output[-TAIL_CHARACTERS:])
    if process.returncode != 0:
        raise ToolError(what, command=shown, code=process.returncode, tail=output[-TAIL_CHARACTERS:])
    return output


def program(name: str) -> str:
    """Path of a program on the ``PATH``; a path stays what it is.

    Raises:
        ToolError: there is none.
    """
    found = shutil.which(name)
    if found is None:
        msg = f"{name} is not on the PATH; install it"
        raise ToolError(msg)
    return found


def run_tool(
    command: Sequence[str],
    what: str,
    *,
    hint: str,
    cwd: Path | None = None,
    timeout_s: float = 1800,
    environment: Mapping[str, str] | None = None,
) -> str:
    """Run a program of the system to its end and return what it printed, without its messages.

    Args:
        command: its command line, that begins with a name or a path.
        what: what is said if it fails.
        hint: what may help where it takes too long.
        cwd: its working folder; None for this process's.
        timeout_s: seconds until it is killed.
        environment: variables on top of this process's.

    Raises:
        ToolError: it failed or ran past its time.
    """
    shown = shlex.join(command)
    with Child(
        [program(command[0]), *command[1:]], cwd=cwd or Path.cwd(), stderr=subprocess.PIPE, environment=environment
    ) as process:
        try:
            output, errors = map(plain_text, process.communicate(timeout=timeout_s))
        except subprocess.TimeoutExpired:
            msg = f"{what}: not done after {timeout_s:g} s, killed; {hint}"
            raise ToolError(msg, command=shown) from None
    if process.returncode:
        raise ToolError(what, command=shown, code=process.returncode, tail=errors[-2000:])
    return output


def _read(process: Child, deadline: float, progress: Callable[[str], None] | None) -> tuple[str, bool]:
    """Collect output until the child ends; False if the deadline came first."""
    stream = process.stdout
    if stream is None:
        return "", False
    collected, line = bytearray(), b""
    with selectors.DefaultSelector() as selector:
        selector.register(stream, selectors.EVENT_READ)
        while True:
            if not selector.select(max(0.0, deadline - time.monotonic())):
                return plain_text(collected), False
            chunk = os.read(stream.fileno(), 1 << 16)
            if not chunk:
                break
            collected += chunk
            del collected[:-MOST_OUTPUT_BYTES]
            *lines, line = (line + chunk).replace(b"\r", b"\n").split(b"\n")
            line = line[-MOST_OUTPUT_BYTES:]
            for text in map(plain_text, lines):
                if progress is not None and text.strip():
                    progress(text.strip())
    try:
        process.wait(max(0.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        return plain_text(collected), False
    return plain_text(collected), True


def plain_text(raw: bytes | bytearray) -> str:
    """Decode what a tool printed, without colors and cursor movements."""
    return _ANSI.sub("", bytes(raw).decode("utf-8", errors="replace"))
