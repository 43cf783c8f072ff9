"""Signals end a command cleanly, with the exit code of the signal."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.command import qplan
from tests.support.wait import until

SLEEPS = """
import sys, time
from pathlib import Path
from qplan.artifact import new_folder
from qplan.cli.main import main
from qplan.compat.table import CompatTable
def read(*_):
    with new_folder(Path("model")):
        Path("started").touch()
        time.sleep(60)
CompatTable.read = read
main(["compat", *sys.argv[1:]])
"""


def ended_by(number: signal.Signals, folder: Path, *options: str, ignored: bool = False) -> subprocess.Popen[str]:
    """A command that was at work when a signal came."""
    before = signal.signal(number, signal.SIG_IGN) if ignored else None
    process = subprocess.Popen(
        [sys.executable, "-c", SLEEPS, *options],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    if before is not None:
        signal.signal(number, before)
    try:
        until(lambda: (folder / "started").exists() or process.poll() is not None)
        process.send_signal(number)
        if ignored:
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(0.5)
            process.send_signal(signal.SIGTERM)
        process.wait(60)
    finally:
        process.kill()
    return process


@pytest.mark.parametrize(
    ("number", "code", "kind"),
    [
        (signal.SIGINT, 130, "InterruptedCommand"),
        (signal.SIGTERM, 143, "TerminatedCommand"),
        (signal.SIGHUP, 129, "HungUpCommand"),
    ],
)
def test_a_signal_is_told_and_leaves_nothing(tmp_path: Path, number: signal.Signals, code: int, kind: str) -> None:
    with ended_by(number, tmp_path, "--json") as process:
        assert process.returncode == code
        assert process.stdout is not None
        document = json.loads(process.stdout.read())
        assert (document["exit_code"], document["error"]["kind"]) == (code, kind)
        assert process.stderr is not None
        assert "run the same command again to resume" in process.stderr.read()
    assert [path.name for path in tmp_path.iterdir()] == ["started"]


def test_what_nohup_ignores_stays_ignored(tmp_path: Path) -> None:
    with ended_by(signal.SIGHUP, tmp_path, ignored=True) as process:
        assert process.returncode == 143


def test_the_next_command_removes_what_a_killed_one_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    run = tmp_path / "run"
    run.mkdir()
    with ended_by(signal.SIGKILL, run):
        assert len(list(run.iterdir())) == 2
    (tmp_path / next(run.glob(".model*")).name.replace(".model.qplan-", "qplan-engine-")).mkdir()
    done = qplan("explain", "int4", "--run", str(run), folder=tmp_path)
    assert "removed 1 temporary" in " ".join(done.stderr.split())
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["run", "started"]


def test_handlers_are_those_of_before(tmp_path: Path) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)]
    assert qplan("compat", folder=tmp_path).returncode == 0
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)] == before


def test_an_interrupt_while_the_program_is_imported_shows_no_traceback() -> None:
    script = """
import sys
class Interrupting:
    def find_spec(self, name, path=None, target=None):
        if name == "qplan.cli.main":
            raise KeyboardInterrupt
sys.meta_path.insert(0, Interrupting())
from qplan.cli.entry import main
main()
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (130, "error: interrupted; nothing was begun\n")
