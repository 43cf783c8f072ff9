from __future__ import annotations

import os
from pathlib import Path

import pytest

from qplan.errors import InputError
from qplan.run.folder import RunFolder


def test_run_folders_are_named_after_the_model(tmp_path: Path) -> None:
    assert RunFolder.for_model("Qwen/Qwen2.5-0.5B-Instruct").folder.name == "Qwen2.5-0.5B-Instruct"
    (tmp_path / "my model").mkdir()
    assert RunFolder.for_model(str(tmp_path / "my model")).folder.name == "my-model"


def test_budget_folders(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    assert [run.budget(b).name for b in ("int8", "4.5bpw", "300MB", "60%")] == ["int8", "4.5bpw", "300mb", "60pct"]


def test_latest_is_the_newest_table(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="qplan analyze"):
        RunFolder.latest(tmp_path)
    for age, name in ((50, "old"), (10, "new"), (90, "older")):
        table = RunFolder(tmp_path / name).sensitivity
        table.parent.mkdir()
        table.touch()
        os.utime(table, (1e9 - age, 1e9 - age))
    assert RunFolder.latest(tmp_path).folder.name == "new"
