"""An exporter that says nothing of a full disk."""

from __future__ import annotations

from pathlib import Path

import pytest

from qplan.errors import StorageError, ToolError
from qplan.mnn.build.exporter import export
from qplan.mnn.build.exporter_source import ExportOptions


def test_files_that_were_not_written_are_put_down_to_a_disk_without_space(
    model_folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qplan.mnn.build.exporter.run_child", lambda *_, **__: "done")
    monkeypatch.setattr("qplan.mnn.build.exporter.settle_ids", lambda *_: None)
    cases: tuple[tuple[int, type[Exception], str], ...] = (
        (10_000, StorageError, r"no space left on the disk, 10,000 bytes free, [\d,]+ needed; free space there"),
        (1 << 40, ToolError, r"reported success but did not write .*llm\.mnn"),
    )
    for free, kind, message in cases:
        for module in ("qplan.mnn.build.exporter", "qplan.artifact"):
            monkeypatch.setattr(f"{module}.free_bytes", lambda _, free=free: free)
        with pytest.raises(kind, match=message):
            export(model_folders["qwen2"], tmp_path / "out", ExportOptions())
        assert not (tmp_path / "out").exists()
