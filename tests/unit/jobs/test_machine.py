"""What a machine's disk does is measured where there is little room, and where there is none that is told."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path

import pytest

from qplan.errors import InputError, StorageError
from qplan.jobs import machine


def test_no_more_is_written_than_has_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[int] = []
    monkeypatch.setattr(machine, "free_bytes", lambda _folder: 8 << 20)
    monkeypatch.setattr("os.fsync", lambda handle: written.append(os.fstat(handle).st_size))
    read, write = machine._disk(tmp_path, time.perf_counter)
    assert written == [2 << 20]
    assert read > 0
    assert write > 0
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("number", "error", "told"),
    [
        (errno.EROFS, InputError, "cannot be written: Read-only file system; give another path"),
        (errno.ENOSPC, StorageError, "no space left on the disk"),
    ],
)
def test_where_nothing_can_be_written_that_is_told(
    number: int, error: type[Exception], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_args: object, **_options: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("tempfile.mkdtemp", refuse)
    with pytest.raises(error, match=told):
        machine._disk(tmp_path, time.perf_counter)
