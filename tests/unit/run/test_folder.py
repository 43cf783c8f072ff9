from __future__ import annotations

import os
from pathlib import Path

import pytest

from qplan.errors import InputError
from qplan.run.folder import RunFolder
from tests.support.hostile import NAME as HOSTILE


def test_run_folders_are_named_after_the_model(tmp_path: Path) -> None:
    assert RunFolder.for_model("Qwen/Qwen2.5-0.5B-Instruct").folder.name == "Qwen2.5-0.5B-Instruct"
    (tmp_path / "my model").mkdir()
    assert RunFolder.for_model(str(tmp_path / "my model")).folder.name == "my-model"


def test_a_place_where_no_folder_can_be_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "nowhere").symlink_to(tmp_path / "gone")
    for place in ("/dev/null", tmp_path / "file", tmp_path / "nowhere"):
        with pytest.raises(InputError, match=f"--run {place} is no folder; name one"):
            RunFolder(Path(place)).check_place()
    with pytest.raises(InputError, match=r"--run .*/file/run cannot be made: .*/file is no folder; name one"):
        RunFolder(tmp_path / "file" / "run").check_place()
    for good in (tmp_path, tmp_path / "new" / "run", Path("new")):
        RunFolder(good).check_place()


def test_budget_folders(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    assert [run.budget(b).name for b in ("int8", "4.5bpw", "300MB", "60%")] == ["int8", "4.5bpw", "300mb", "60pct"]


@pytest.mark.parametrize("name", ["..", ".", "...", "a/..", "../..", HOSTILE])
def test_no_name_leads_out_of_the_folder_of_folders(tmp_path: Path, name: str) -> None:
    runs = tmp_path / "runs"
    run = RunFolder.for_model(f"not/there/{name}", runs)
    assert run.folder.resolve().parent == runs
    for plan in (run.budget(name), run.budget_for(name, "3.5.0")):
        assert plan.resolve().parent == run.folder
    assert set(run.budget(name).name) <= set("abcdefghijklmnopqrstuvwxyz0123456789_-.")


@pytest.mark.parametrize("name", ["frontier", "Folded", "skeleton-without-c4", "rounding", "baselines-mnn-3.5.0"])
def test_a_plan_does_not_move_in_with_other_stages(tmp_path: Path, name: str) -> None:
    run = RunFolder(tmp_path)
    assert run.budget(name).name == f"{name.lower()}-plan"


def test_latest_is_the_newest_table(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="qplan analyze"):
        RunFolder.latest(tmp_path)
    for age, name in ((50, "old"), (10, "new"), (90, "older")):
        table = RunFolder(tmp_path / name).sensitivity
        table.parent.mkdir()
        table.touch()
        os.utime(table, (1e9 - age, 1e9 - age))
    assert RunFolder.latest(tmp_path).folder.name == "new"


def test_a_place_that_cannot_be_written_is_refused() -> None:
    with pytest.raises(InputError, match=r"--run /proc/run cannot be written: /proc: .*; name another one"):
        RunFolder(Path("/proc/run")).check_place()
