"""Temporary files and folders: gone when their owner is, and never another's."""

from __future__ import annotations

import gc
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from qplan.artifact import atomic_path, new_folder
from qplan.scratch import Scratch, remove_leftovers

MAKE = """
import sys, time
from pathlib import Path
from qplan.artifact import atomic_path, new_folder
from qplan.scratch import Scratch
home = Path(sys.argv[1])
scratch = Scratch("test")
with new_folder(home / "model") as draft, atomic_path(home / "deep" / "plan.json") as plan:
    (draft / "weights").write_text("x")
    print(scratch.folder, flush=True)
    time.sleep(60)
"""


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@contextmanager
def maker(home: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that has a scratch folder, a draft and a half-written file."""
    with subprocess.Popen([sys.executable, "-c", MAKE, str(home)], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert Path(process.stdout.readline().strip()).is_dir()
            yield process
        finally:
            process.kill()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*"))


def test_what_a_killed_process_left_is_removed_and_what_a_living_one_holds_is_not(
    tmp_path: Path, temporary: Path
) -> None:
    home = tmp_path / "run"
    with maker(home) as process:
        before = names(tmp_path)
        assert remove_leftovers(home, deep=True) == remove_leftovers(temporary) == 0
        assert names(tmp_path) == before
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert names(tmp_path) == before
        assert remove_leftovers(home, deep=False) == 1
        assert remove_leftovers(home, deep=True) == remove_leftovers(temporary) == 1
    assert names(tmp_path) == ["deep", "run", "tmp"]


def test_a_signal_in_the_midst_of_a_removal_leaves_nothing(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scratch, remove, calls = Scratch("test"), shutil.rmtree, list[Path]()

    def interrupted(path: Path, *, ignore_errors: bool = False) -> None:
        calls.append(path)
        if len(calls) == 1:
            raise KeyboardInterrupt
        remove(path, ignore_errors=ignore_errors)

    monkeypatch.setattr("qplan.scratch.shutil.rmtree", interrupted)
    with pytest.raises(KeyboardInterrupt):
        scratch.remove()
    assert not list(temporary.iterdir())


def test_the_number_of_a_process_does_not_suffice(tmp_path: Path) -> None:
    # as seen from another container: a process that cannot be seen holds its lock all the same
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    with Scratch(beside=tmp_path / "model") as mine:
        foreign = mine.with_name(mine.name.replace(f"-{os.getpid()}-", f"-{gone.pid}-"))
        mine.rename(foreign)
        assert remove_leftovers(tmp_path) == 0
        foreign.rename(mine)
    foreign.mkdir()
    assert remove_leftovers(tmp_path) == 1
    # a container's first process has the same number as the one before it
    mine.mkdir()
    assert remove_leftovers(tmp_path) == 1


def test_only_names_of_ours_are_removed(tmp_path: Path) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    others = [".model.abcdefgh", "qplan-runs", f"qplan-{gone.pid}-abcdefgh", f".x-{gone.pid}-abcdefgh", "qplan-a-b-c"]
    for name in others:
        (tmp_path / name).mkdir()
    (tmp_path / "kept").mkdir()
    (tmp_path / f"qplan-link-{gone.pid}-abcdefgh").symlink_to(tmp_path / "kept")
    assert remove_leftovers(tmp_path, deep=True) == 0
    assert remove_leftovers(tmp_path / "nowhere", deep=True) == 0
    assert (tmp_path / "kept").is_dir()


def test_a_draft_of_the_same_folder_is_removed_by_the_next(tmp_path: Path, temporary: Path) -> None:
    home = tmp_path / "run"
    with maker(home) as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
        with new_folder(home / "model"):
            pass
    assert sorted(path.name for path in home.iterdir()) == ["deep", "model"]


def test_long_names_have_temporary_siblings_too(tmp_path: Path) -> None:
    path = tmp_path / ("x" * 250 + ".json")
    with atomic_path(path) as sibling:
        sibling.write_text("{}")
    assert path.read_text() == "{}"
    with new_folder(tmp_path / ("y" * 255)) as draft:
        (draft / "a").touch()
    assert (tmp_path / ("y" * 255) / "a").is_file()


def test_a_dropped_scratch_is_removed_and_a_forked_process_removes_none() -> None:
    scratch = Scratch("test")
    folder = scratch.folder
    child = os.fork()
    if child == 0:
        scratch.remove()
        os._exit(0)
    os.waitpid(child, 0)
    assert folder.is_dir()
    del scratch
    gc.collect()
    assert not folder.exists()
