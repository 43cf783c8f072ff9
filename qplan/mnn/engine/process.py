"""The parent's side of an engine process: requests, deadlines, and the engine's last words when it dies."""

from __future__ import annotations

import json
import os
import selectors
import shlex
import subprocess
import threading
import time
import weakref
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from qplan.artifact import needing_room
from qplan.errors import ToolError
from qplan.mnn.child import TAIL_CHARACTERS, Child, plain_text
from qplan.mnn.host import THIS_PYTHON, EngineHost
from qplan.scratch import Scratch

MOST_ANSWER_BYTES = 64 << 20
"""Longest answer that is read; logits travel as files."""

_PATIENCE_S = 3600.0
"""Longest single wait: the system's timers end after 24 days."""


class EngineProcess:
    """One child process that answers one request at a time; it ends when this is closed or dropped.

    Requests are numbered, and one that is interrupted ends the process: its answer would be the next one's. Any thread
    may close it. A forked process can do nothing with it.
    """

    def __init__(self, host: EngineHost = THIS_PYTHON) -> None:
        """Start the child in a scratch folder of its own.

        Args:
            host: runs it; deadlines are longer by its patience.
        """
        self._owner = os.getpid()
        self._lock = threading.RLock()
        self._number = 0
        self._at_work = False
        self._closed = threading.Event()
        scratch = Scratch("engine")
        self.folder = scratch.folder
        self._log = self.folder / "engine.log"
        self._log.touch()
        self._patience = host.patience
        command = host.command("engine/session_child.py", [str(self._log)])
        self._shown = shlex.join(command)
        with self._log.open("ab") as log:  # what is said before the child redirects its own output
            self._process = Child(command, cwd=self.folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log)
        self._finish = weakref.finalize(self, _finish, self._process, scratch)
        self._stdin, self._stdout = _number_of(self._process.stdin), _number_of(self._process.stdout)
        os.set_blocking(self._stdin, False)

    @property
    def alive(self) -> bool:
        """Whether the child still runs."""
        return self._process.poll() is None

    @property
    def foreign(self) -> bool:
        """Whether this is a forked process's copy of its parent's."""
        return self._owner != os.getpid()

    def request(self, request: Mapping[str, Any], timeout_s: float) -> dict[str, Any]:
        """Send a request and wait for its answer.

        Raises:
            StorageError: the disk of the temporary folder is full.
            ToolError: the child refused, crashed, was closed, or did not answer in time or not as agreed; unless it
                refused, it is dead.
        """
        what = f"MNN's engine failed at {request['command']!r}"
        timeout_s *= self._patience
        if self.foreign:
            msg = f"{what}: it belongs to process {self._owner}, which this one was forked from; start one here"
            raise ToolError(msg)
        with self._lock:
            self._number += 1
            self._at_work = True
            try:
                message = json.dumps({"id": self._number, **request}).encode() + b"\n"
                with needing_room(self.folder):
                    reply = self._exchange(message, time.monotonic() + timeout_s, what, timeout_s)
            except BaseException:
                self._process.end()
                raise
            finally:
                self._at_work = False
        if "error" in reply:
            msg = f"{what}: {reply['error']}"
            raise ToolError(msg, tail=self._tail())
        answer: dict[str, Any] = reply["ok"]
        return answer

    def _exchange(self, message: bytes, deadline: float, what: str, timeout_s: float) -> dict[str, Any]:
        if self._closed.is_set() or not self.alive:
            raise self._failure(what, "its process has ended; call restart()")
        try:
            self._send(message, deadline)
            line = self._line(deadline)
        except TimeoutError:
            why = f"no answer after {timeout_s:g} s, killed; allow more time"
            raise self._failure(what, why, ended=False) from None
        except OSError as error:
            if not self._closed.is_set():
                raise self._failure(what, f"the pipe to its process broke: {error}") from None
            line = None
        if line is None and self._closed.is_set():
            raise self._failure(what, "it was closed while it was at work", ended=False)
        if line is None:
            raise self._failure(what, "its process died")
        with suppress(ValueError, RecursionError):
            reply = json.loads(line)
            if isinstance(reply, dict) and reply.get("id") == self._number and ("error" in reply or "ok" in reply):
                return reply
        why = f"what came is no answer to request {self._number}: {line[:80]!r}; killed"
        raise self._failure(what, why, ended=False)

    def _send(self, message: bytes, deadline: float) -> None:
        """Write a request.

        Raises:
            TimeoutError: the child does not read it.
        """
        left = memoryview(message)
        with selectors.DefaultSelector() as selector:
            selector.register(self._stdin, selectors.EVENT_WRITE)
            while left:
                _wait(selector, deadline)
                try:
                    left = left[os.write(self._stdin, left) :]
                except BrokenPipeError:  # the missing answer tells more
                    return

    def _line(self, deadline: float) -> bytes | None:
        """One line of the child's answers, cut where it is too long; None if the child died.

        Raises:
            TimeoutError: the deadline came.
        """
        line = bytearray()
        with selectors.DefaultSelector() as selector:
            selector.register(self._stdout, selectors.EVENT_READ)
            while not line.endswith(b"\n"):
                _wait(selector, deadline)
                chunk = os.read(self._stdout, 1 << 16)
                if not chunk:
                    with suppress(subprocess.TimeoutExpired):
                        self._process.wait(10)
                    return None
                line += chunk
                if len(line) > MOST_ANSWER_BYTES:
                    break
        return bytes(line)

    def _tail(self) -> str:
        try:
            with self._log.open("rb") as log:
                log.seek(max(0, log.seek(0, os.SEEK_END) - 4 * TAIL_CHARACTERS))
                return plain_text(log.read(4 * TAIL_CHARACTERS))[-TAIL_CHARACTERS:]
        except FileNotFoundError:
            return ""

    def _failure(self, what: str, why: str, *, ended: bool = True) -> ToolError:
        code = self._process.poll() if ended else None
        return ToolError(f"{what}: {why}", command=self._shown, code=code, tail=self._tail())

    def close(self) -> None:
        """End the child: an idle one is asked to, one at work is killed, and its request fails."""
        if self.foreign:
            return
        self._closed.set()
        if self._at_work:
            self._process.end()
        with self._lock:
            self._process.close_streams()
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(10)
            self._finish()


def _finish(process: Child, scratch: Scratch) -> None:
    """End the child and remove its folder; in a forked process, neither."""
    process.end()
    process.close_streams()
    scratch.remove()


def _wait(selector: selectors.BaseSelector, deadline: float) -> None:
    """Wait until a pipe is ready.

    Raises:
        TimeoutError: the deadline came.
    """
    while not selector.select(min(_PATIENCE_S, max(0.0, deadline - time.monotonic()))):
        if time.monotonic() >= deadline:
            raise TimeoutError


def _number_of(stream: Any) -> int:  # noqa: ANN401 - a pipe, which Popen may lack
    if stream is None:
        msg = "the engine's process has no pipes"
        raise ToolError(msg)
    return int(stream.fileno())
