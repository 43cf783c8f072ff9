"""Interrupted, dropped, closed, forked and killed: no answer of another request, and no process left behind."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import qplan
from qplan.errors import InputError, ToolError
from qplan.mnn.engine import process as engine_process
from qplan.mnn.engine.session import EngineSession
from qplan.mnn.host import EngineHost
from tests.support.wait import group_runs, until


@pytest.fixture
def engine(good: dict[str, Path]) -> Iterator[qplan.Engine]:
    with qplan.Engine(good["tied"], context=64, timeout_s=60) as running:
        yield running


def process_of(engine: qplan.Engine) -> Any:
    return engine._open()._running()._process


def test_an_interrupted_request_never_answers_the_next(engine: qplan.Engine) -> None:
    expected = engine.logits([5, 6, 7])
    pieces = engine.generate([1, 2, 3], 20)
    next(pieces)
    process = process_of(engine)
    process.send_signal(signal.SIGSTOP)  # so that the interrupt comes while there is a request

    def interrupt() -> None:
        os.kill(os.getpid(), signal.SIGINT)

    threading.Timer(0.3, interrupt).start()
    with pytest.raises(KeyboardInterrupt):
        engine.logits([9, 9, 9])
    assert process.returncode is not None
    np.testing.assert_array_equal(engine.logits([5, 6, 7]), expected)
    with pytest.raises(InputError, match="another request or a restart"):
        next(pieces)


def test_a_dropped_engine_ends_its_process(good: dict[str, Path]) -> None:
    engine = qplan.Engine(good["tied"], timeout_s=60)
    process, folder = process_of(engine).pid, engine._open()._running().folder
    del engine
    gc.collect()
    assert not group_runs(process)
    assert not folder.exists()


def test_closing_ends_the_request_of_another_thread(good: dict[str, Path]) -> None:
    engine = qplan.Engine(good["tied"], timeout_s=60)
    process = process_of(engine)
    process.send_signal(signal.SIGSTOP)
    threading.Timer(0.3, engine.close).start()
    with pytest.raises(ToolError, match="closed while it was at work"):
        engine.logits([1, 2, 3])
    until(lambda: not group_runs(process.pid))
    with pytest.raises(ToolError, match="was closed"):
        engine.logits([1, 2, 3])


def test_a_forked_process_neither_uses_nor_ends_the_engine(engine: qplan.Engine) -> None:
    expected, process = engine.logits([1, 2, 3]), process_of(engine).pid
    child = os.fork()
    if child == 0:
        code = 1
        try:
            engine.logits([1, 2, 3])
        except ToolError as error:
            code = 0 if "forked from" in str(error) else 2
        engine.close()
        del engine
        gc.collect()
        os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    np.testing.assert_array_equal(engine.logits([1, 2, 3]), expected)
    assert process_of(engine).pid == process


PARENT = """
import sys, time, qplan
engine = qplan.Engine(sys.argv[1], timeout_s=60)
process = engine._open()._running()
print(process._process.pid, process.folder, flush=True)
time.sleep(60)
"""


def test_a_killed_parent_leaves_no_engine(good: dict[str, Path]) -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT, str(good["tied"])], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        group = int(parent.stdout.readline().split()[0])
        assert group_runs(group)
        parent.send_signal(signal.SIGKILL)
        parent.wait()
    until(lambda: not group_runs(group))


class Liar(Sequence[int]):
    """Says that it has three tokens, and has no end."""

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: Any) -> Any:
        return 1


def test_a_length_that_lies_is_not_believed(engine: qplan.Engine) -> None:
    with pytest.raises(InputError, match="say that they are 3, and are more"):
        engine.logits(Liar())


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b'{"id": 77, "ok": {"shape": [3, 320]}}\n', "no answer to request"),
        (b'{"ok": {}}\n', "no answer to request"),
        (b"[" * 100_000 + b"\n", "no answer to request"),
        (b"9" * 5000 + b"\n", "no answer to request"),
        (b"x" * 5_000_000, "no answer to request"),
        (b'{"id": 2, "ok": {"shape": [3, 1000000000000]}}\n', "logits of shape"),
        (b'{"id": 2, "ok": {"shape": [3, 320]}}\n', "came as 8 bytes"),
    ],
)
def test_what_is_no_answer_is_not_believed(
    good: dict[str, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, answer: bytes, words: str
) -> None:
    (tmp_path / "answer").write_bytes(answer)
    script = (
        "import json, sys; from pathlib import Path\n"
        "sys.stdin.readline()\n"
        "print(json.dumps({'id': 1, 'ok': {'vocabulary': 320, 'version': '3.6.1'}}), flush=True)\n"
        "Path(json.loads(sys.stdin.readline())['path']).write_bytes(b'12345678')\n"
        f"sys.stdout.buffer.write(Path({str(tmp_path / 'answer')!r}).read_bytes()); sys.stdout.flush()\n"
        "sys.stdin.read()"
    )
    host = EngineHost((sys.executable, "-c", script))
    monkeypatch.setattr(engine_process, "MOST_ANSWER_BYTES", 1 << 20)
    with EngineSession(good["tied"], timeout_s=60, host=host) as session, pytest.raises(ToolError, match=words):
        session.logits([1, 2, 3])
