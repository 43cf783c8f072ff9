"""Two commands do not change one run folder, and a full disk is an error that says so."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from qplan.artifact import new_folder, write_json
from qplan.cli.main import main
from qplan.cli.signals import signals_interrupt
from qplan.errors import BusyError, InputError, StorageError
from qplan.run.folder import RunFolder
from qplan.run.journal import Journal
from qplan.run.lock import LOCK_FILE, locked_run
from qplan.run.safetensors_file import write_safetensors
from tests.support.ended_early import Ender, forked
from tests.support.golden import GOLDEN
from tests.support.invented_table import make_table


def test_a_second_process_is_told_who_holds_the_folder(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "runs" / "tiny")
    code = (
        "import sys; from pathlib import Path; from qplan.run.folder import RunFolder; "
        "from qplan.run.lock import locked_run\n"
        "with locked_run(RunFolder(Path(sys.argv[1])), 'emit'): print('held', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(run.folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with (
            pytest.raises(BusyError, match=rf"process {holder.pid} \(qplan emit, since .*--run DIR"),
            locked_run(run, "x"),
        ):
            pass
        holder.kill()
    assert (run.folder / LOCK_FILE).is_file()
    with locked_run(run, "analyze"):  # the lock of a killed process holds nobody up
        (run.folder / "kept").touch()
    assert [path.name for path in run.folder.iterdir()] == ["kept"]


def test_a_signal_amid_the_release_leaves_no_lock(tmp_path: Path) -> None:
    run, hit = RunFolder(tmp_path / "run"), tmp_path / "hit"

    def job() -> None:
        with signals_interrupt(), locked_run(run, "emit"):
            (run.folder / "kept").touch()

    def asked(event: str, path: Path) -> signal.Signals | None:
        if (event, path.name) != ("os.remove", LOCK_FILE) or hit.exists():
            return None
        hit.touch()
        return signal.SIGTERM

    assert forked(job, tmp_path / "told.txt", Ender(run.folder, asked)) == 1
    assert hit.exists()
    assert [path.name for path in run.folder.iterdir()] == ["kept"]


def test_a_refused_command_leaves_no_folder(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), locked_run(RunFolder(tmp_path / "a" / "b"), "analyze"):
        raise RuntimeError
    assert not list(tmp_path.iterdir())


def test_threads_of_one_process_exclude_each_other_too(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    with locked_run(run, "emit"), pytest.raises(BusyError, match=str(os.getpid())), locked_run(run, "emit"):
        pass


@contextmanager
def at_most(size: int) -> Iterator[None]:
    """Files of this process cannot grow beyond ``size`` bytes: what a quota does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_what_finds_no_space_names_path_and_bytes_and_leaves_nothing(tmp_path: Path) -> None:
    table, path = make_table(), tmp_path / "a"
    with at_most(2000):
        with pytest.raises(StorageError, match=r"a cannot be written: no space left.* [\d,]+ needed; free space"):
            table.write(path)
        with pytest.raises(StorageError, match="needed"):
            write_json(path, "k", 1, {}, {"text": "x" * 5000})
        with pytest.raises(StorageError, match="40,000 needed"):
            write_safetensors(path, {"a": np.zeros(10_000, np.float32)})
        with pytest.raises(StorageError, match="needed"), new_folder(path) as draft:
            (draft / "big").write_bytes(bytes(5000))
    assert not list(tmp_path.iterdir())


def test_a_journal_that_finds_no_space_keeps_its_whole_lines(tmp_path: Path) -> None:
    path, measured = tmp_path / "journal.jsonl", make_table().measurements
    with at_most(2000), pytest.raises(StorageError, match="journal"), Journal(path, {"model": "m"}) as journal:
        for measurement in measured:
            journal.add(measurement)
    kept = path.read_bytes()
    assert kept.endswith(b"\n")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with Journal(path, {"model": "m"}) as journal:
            assert list(journal.measurements.values()) == list(measured[: kept.count(b"\n") - 1])


def test_a_path_that_cannot_be_written_is_bad_input(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "file" / "a.json", tmp_path / ("n" * 300)):
        with pytest.raises(InputError, match="cannot be written"):
            write_json(path, "k", 1, {}, {})


@pytest.mark.slow
@pytest.mark.parametrize("options", [[], ["--json"]])
def test_standard_output_that_is_full_is_told(options: list[str]) -> None:
    script = "import sys; from qplan.cli.main import main; main(sys.argv[1:])"
    command = [sys.executable, "-c", script, "explain", "int8", "--run", str(GOLDEN), *options]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == StorageError.exit_code, done.stderr
    assert "cannot be written: No space left on device" in done.stderr
    assert "Traceback" not in done.stderr


def test_commands_that_read_need_no_lock(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(GOLDEN, tmp_path / "run")
    with locked_run(RunFolder(tmp_path / "run"), "emit"), pytest.raises(SystemExit) as ended:
        main(["explain", "int8", "--run", str(tmp_path / "run")])
    assert ended.value.code == 0
    assert "int8" in capsys.readouterr().out
