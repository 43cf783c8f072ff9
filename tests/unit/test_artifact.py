from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from qplan.artifact import (
    atomic_path,
    is_there,
    read_json,
    remove_folder,
    sha256_bytes,
    sha256_files,
    temporary_folder,
    write_json,
)
from qplan.errors import InputError, StaleArtifactError, StorageError, ToolError


def test_a_document_reads_back_with_its_header(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "a.json"
    write_json(path, "thing", 2, {"model": "abc"}, {"value": 1.5})
    document = read_json(path, "thing", 2)
    assert document["value"] == 1.5
    assert document["inputs"] == {"model": "abc"}
    assert document["versions"]["torch"] != "absent"
    assert read_json(path, "thing", 3)["schema"] == 2


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, "thing", 1, {}, {"value": 1})
    before = path.read_bytes()
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, "thing", 1, {}, {"value": float("nan")})
    with pytest.raises(RuntimeError), atomic_path(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_is_removed_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def folder() -> Path:
        made = tmp_path / "folder"
        (made / "deep").mkdir(parents=True)
        (made / "deep" / "file").touch()
        return made

    remove_folder(folder())
    assert not list(tmp_path.iterdir())
    remove_folder(tmp_path / "folder")  # nothing there
    monkeypatch.setattr("qplan.scratch.shutil.rmtree", lambda *_, **__: None)  # killed before it
    remove_folder(folder())
    assert not (tmp_path / "folder").exists()


def test_a_newer_schema_and_another_kind_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, "thing", 3, {}, {})
    with pytest.raises(StaleArtifactError, match="schema 3"):
        read_json(path, "thing", 2)
    with pytest.raises(InputError, match="expected 'other'"):
        read_json(path, "other", 3)


@pytest.mark.parametrize("text", ["{", "[1]", '{"kind": "thing"}\x00', ""])
def test_broken_files_are_input_errors(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(InputError, match=r"a\.json"):
        read_json(path, "thing", 1)
    with pytest.raises(InputError, match="does not exist; restore it or make it again"):
        read_json(tmp_path / "none.json", "thing", 1)


def test_hashes_depend_on_where_parts_end(tmp_path: Path) -> None:
    assert sha256_bytes(b"ab", b"c") != sha256_bytes(b"a", b"bc")
    first, second = tmp_path / "1", tmp_path / "2"
    first.write_text("x")
    second.write_text("y")
    assert sha256_files([first, second]) == sha256_files([second, first])
    before = sha256_files([first, second])
    second.write_text("z")
    assert sha256_files([first, second]) != before


def test_written_files_are_plain_utf8(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, "thing", 1, {}, {"name": "模型"})
    assert "模型" in path.read_text(encoding="utf-8")
    assert json.loads(path.read_text(encoding="utf-8"))["name"] == "模型"


@pytest.mark.parametrize(("free", "told"), [(100, StorageError), (1 << 20, ToolError)])
def test_what_failed_beside_a_full_temporary_folder_is_put_down_to_it(
    monkeypatch: pytest.MonkeyPatch, free: int, told: type[Exception]
) -> None:
    monkeypatch.setattr("qplan.artifact.free_bytes", lambda _: free)
    with pytest.raises(told) as caught, temporary_folder("test") as folder:
        msg = "the converter failed"
        raise ToolError(msg)
    assert ("TMPDIR" in str(caught.value)) == (told is StorageError)
    assert not folder.exists()
    with pytest.raises(InputError), temporary_folder("test"):
        msg = "another matter"
        raise InputError(msg)


def test_something_else_in_the_place_of_an_artifact_is_told(tmp_path: Path) -> None:
    assert not is_there(tmp_path / "nothing")
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("file")
    assert is_there(tmp_path / "file")
    assert is_there(tmp_path / "link")
    (tmp_path / "folder").mkdir()
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "device").symlink_to("/dev/null")
    os.mkfifo(tmp_path / "fifo")
    kinds = {
        "folder": "a folder",
        "dangling": "a link to nothing",
        "loop": "a link to nothing",
        "device": "no regular file",
        "fifo": "no regular file",
    }
    for name, kind in kinds.items():
        with pytest.raises(InputError, match=f"{name} is {kind}, where a file of qplan belongs"):
            is_there(tmp_path / name)
