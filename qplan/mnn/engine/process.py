"""The parent's side of an engine process: requests, deadlines, and the engine's last words when it dies."""

from __future__ import annotations

import json
import os
import selectors
import shlex
import subprocess
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from qplan.errors import ToolError
from qplan.mnn.child import TAIL_CHARACTERS, child_command, kill, plain_text


class EngineProcess:
    """One child process that answers one request at a time."""

    def __init__(self) -> None:
        """Start the child in a scratch folder of its own."""
        self._scratch = tempfile.TemporaryDirectory(prefix="qplan-engine-")
        self.folder = Path(self._scratch.name)
        self._log = self.folder / "engine.log"
        self._log.touch()
        command = child_command("engine/session_child.py", [str(self._log)])
        self._shown = shlex.join(command)
        self._buffer = b""
        with self._log.open("ab") as log:  # what is said before the child redirects its own output
            self._process = subprocess.Popen(
                command,
                cwd=self.folder,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
            )

    @property
    def alive(self) -> bool:
        """Whether the child still runs."""
        return self._process.poll() is None

    def request(self, request: Mapping[str, Any], timeout_s: float) -> dict[str, Any]:
        """Send a request and wait for its answer.

        Raises:
            ToolError: the child refused, crashed, or did not answer in time; after the last two it is dead.
        """
        what = f"MNN's engine failed at {request['command']!r}"
        stdin = self._process.stdin
        if stdin is None or not self.alive:
            raise self._failure(what, "its process has ended; call restart()")
        with suppress(BrokenPipeError):  # the missing answer tells more
            stdin.write(json.dumps(request).encode() + b"\n")
            stdin.flush()
        line = self._line(time.monotonic() + timeout_s)
        if line is None:
            running = self.alive
            kill(self._process)
            if running:
                raise self._failure(what, f"no answer after {timeout_s:g} s, killed; allow more time", ended=False)
            raise self._failure(what, "its process died")
        reply = json.loads(line)
        if "error" in reply:
            msg = f"{what}: {reply['error']}"
            raise ToolError(msg, tail=self._tail())
        answer: dict[str, Any] = reply["ok"]
        return answer

    def _line(self, deadline: float) -> bytes | None:
        """One line of the child's answers; None if it died or the deadline came."""
        stream = self._process.stdout
        if stream is None:
            return None
        with selectors.DefaultSelector() as selector:
            selector.register(stream, selectors.EVENT_READ)
            while b"\n" not in self._buffer:
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    return None
                chunk = os.read(stream.fileno(), 1 << 16)
                if not chunk:
                    with suppress(subprocess.TimeoutExpired):
                        self._process.wait(10)
                    return None
                self._buffer += chunk
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line

    def _tail(self) -> str:
        return plain_text(self._log.read_bytes())[-TAIL_CHARACTERS:] if self._log.is_file() else ""

    def _failure(self, what: str, why: str, *, ended: bool = True) -> ToolError:
        code = self._process.poll() if ended else None
        return ToolError(f"{what}: {why}", command=self._shown, code=code, tail=self._tail())

    def close(self) -> None:
        """End the child: ask first, then kill."""
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with suppress(BrokenPipeError):
                    stream.close()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(10)
        kill(self._process)
        self._scratch.cleanup()
