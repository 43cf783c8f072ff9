"""What a command took is measured, written and read."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from qplan.errors import InputError
from qplan.run.took import Took


def test_time_and_memory_are_measured() -> None:
    took = Took.since(time.monotonic() - 5, "emit", resumed=True)
    assert took.seconds >= 5
    assert took.peak_bytes > 10_000_000  # Python alone takes as much
    assert took.resumed


def test_it_is_read_as_it_was_written(tmp_path: Path) -> None:
    took = Took(command="analyze", seconds=12.5, peak_bytes=3)
    took.write(tmp_path / "took.json", "ab")
    assert Took.read(tmp_path / "took.json") == took


def test_earlier_runs_have_none(tmp_path: Path) -> None:
    assert Took.read(tmp_path / "took.json") is None


def test_another_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "took.json").write_text('{"kind": "qplan-plan"}', encoding="utf-8")
    with pytest.raises(InputError):
        Took.read(tmp_path / "took.json")
