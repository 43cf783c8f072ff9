"""An exporter that says nothing of a full disk, and one that cannot do without weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from qplan.errors import InputError, StorageError, ToolError
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


def test_an_exporter_that_fails_without_weights_gets_them_if_memory_allows(
    model_folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[str] = []

    def run(_script: str, arguments: Sequence[str], *, cwd: Path, **_: object) -> str:
        kept.append(arguments[0])
        if kept[-1]:
            (cwd / arguments[1]).touch()
            (cwd / "../draft/half").touch()
            msg = "Cannot copy out of meta tensor; no data!"
            raise ToolError(msg, code=1)
        assert list((cwd / "../draft").iterdir()) == []
        return "nothing was written"

    monkeypatch.setattr("qplan.mnn.build.exporter.run_child", run)
    with pytest.raises(ToolError, match="reported success but did not write"):
        export(model_folders["llama"], tmp_path / "out", ExportOptions(), whole=False)
    assert kept == ["embed_tokens", ""]
    monkeypatch.setattr("qplan.mnn.build.exporter.whole_bytes", lambda _: 7_000_000_000)
    with pytest.raises(
        InputError, match=r"cannot do without the weights .* about 7\.0 GB .* --max-memory 6\.0GB leaves"
    ):
        export(model_folders["llama"], tmp_path / "out", ExportOptions(), whole=False, max_memory_bytes=6_000_000_000)
    assert kept == ["embed_tokens", "", "embed_tokens"]


@pytest.mark.parametrize("code", [-9, None, 1])
def test_other_failures_are_told_at_once(
    code: int | None, model_folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs: list[Path] = []

    def run(_script: str, arguments: Sequence[str], *, cwd: Path, **__: object) -> str:
        runs.append(cwd)
        if code != 1:  # killed, or out of time
            (cwd / arguments[1]).touch()
        msg = "failed for its own reasons"
        raise ToolError(msg, code=code)

    monkeypatch.setattr("qplan.mnn.build.exporter.run_child", run)
    with pytest.raises(ToolError, match="own reasons"):
        export(model_folders["llama"], tmp_path / "out", ExportOptions(), whole=False)
    assert len(runs) == 1


def test_too_little_memory_is_told_before_anything_starts(
    model_folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qplan.mnn.build.exporter.run_child", lambda *_, **__: pytest.fail("it started"))
    with pytest.raises(InputError, match=r"takes about 0\.5 GB of memory, and --max-memory 0\.1GB leaves 0\.0 GB"):
        export(model_folders["llama"], tmp_path / "out", ExportOptions(), whole=False, max_memory_bytes=100_000_000)
