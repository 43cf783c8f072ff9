from __future__ import annotations

import shutil
from pathlib import Path

from qplan.artifact import free_bytes
from qplan.cost.free import existing, free_memory


def test_a_machine_that_runs_this_has_memory() -> None:
    assert 2**20 < free_memory() < 2**50


def test_a_folder_that_is_not_there_lies_on_the_disk_of_one_that_is(tmp_path: Path) -> None:
    assert existing(tmp_path / "a" / "b") == tmp_path.resolve()
    assert abs(free_bytes(tmp_path / "a") - shutil.disk_usage(tmp_path).free) < 2**30
