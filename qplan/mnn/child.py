"""Child processes: everything native runs in one, in its own working folder; an error carries its last output."""

from __future__ import annotations

import os
import re
import selectors
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from qplan.errors import ToolError

TAIL_CHARACTERS = 4000
"""How much of a failed child's output goes into the error."""

_ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def child_command(script: str, arguments: Sequence[str]) -> list[str]:
    """Command line of one of this folder's ``*_child.py`` scripts.

    ``-P`` keeps this folder out of the child's ``sys.path``: its module names must not shadow the exporter's.
    """
    return [sys.executable, "-P", str(Path(__file__).parent / script), *arguments]


def kill(process: subprocess.Popen[bytes]) -> None:
    """Kill a child that was started in its own session, with its own children, and wait for its end."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


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
    output = ""
    with subprocess.Popen(
        command,
        cwd=cwd,
        env=os.environ | dict(environment or {}),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    ) as process:
        try:
            output, ended = _read(process, time.monotonic() + timeout_s, progress)
        finally:
            kill(process)
    if not ended:
        msg = f"{what}: not done after {timeout_s:g} s, killed; allow more time or look at its last output"
        raise ToolError(msg, command=shown, tail=output[-TAIL_CHARACTERS:])
    if process.returncode != 0:
        raise ToolError(what, command=shown, code=process.returncode, tail=output[-TAIL_CHARACTERS:])
    return output


def _read(
    process: subprocess.Popen[bytes], deadline: float, progress: Callable[[str], None] | None
) -> tuple[str, bool]:
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
            *lines, line = (line + chunk).replace(b"\r", b"\n").split(b"\n")
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
