"""A model in object storage is fetched once, and again when it changes there."""

from __future__ import annotations

from pathlib import Path

import fsspec
import pytest

from qplan.errors import InputError
from qplan.model.load import LoadedModel, load_model
from qplan.model.source import fetch, lasting, local_folder
from qplan.run.folder import RunFolder


@pytest.fixture
def url(model_folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A bucket in this process's memory with a tiny model, and a file of no model."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    files = fsspec.filesystem("memory")
    for path in model_folders["qwen2"].iterdir():
        files.pipe_file(f"/bucket/tiny/{path.name}", path.read_bytes())
    files.pipe_file("/bucket/tiny/weights.bin", b"no pickles")
    return "memory://bucket/tiny"


def test_a_model_in_a_bucket_is_the_model(url: str, qwen2: LoadedModel, tmp_path: Path) -> None:
    loaded = load_model(url)
    assert loaded.card.sha256 == qwen2.card.sha256
    assert loaded.card.source == lasting(url) == url
    assert local_folder(url) is None
    assert loaded.folder.is_relative_to(tmp_path / "cache" / "qplan" / "models")
    assert not (loaded.folder / "weights.bin").exists()
    assert RunFolder.for_model(url).folder.name == RunFolder.for_model(f"{url}/").folder.name == "tiny"


def test_it_is_fetched_again_only_if_it_changed(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    first = fetch(url)
    with monkeypatch.context() as patch:
        patch.setattr("fsspec.implementations.memory.MemoryFileSystem.get_file", None)
        assert fetch(url) == first
    fsspec.filesystem("memory").pipe_file("/bucket/tiny/generation_config.json", b'{"eos_token_id": 0}')
    assert fetch(url) != first


def test_links_are_followed(model_folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    for path in model_folders["qwen2"].iterdir():
        (snapshot / path.name).symlink_to(path)
    fetched = fetch(f"file://{snapshot}")
    assert (fetched / "config.json").read_bytes() == (snapshot / "config.json").read_bytes()
    assert not (fetched / "model.safetensors").is_symlink()
    (snapshot / "config.json").unlink()
    (snapshot / "config.json").symlink_to(tmp_path / "gone")
    with pytest.raises(InputError, match=r"holds no config\.json"):
        fetch(f"file://{snapshot}")


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("memory://bucket/empty", "cannot be read|holds no config.json"),
        ("nothing://bucket/model", "cannot be read: Protocol not known"),
    ],
)
def test_what_cannot_be_fetched_is_refused(url: str, given: str, told: str) -> None:
    with pytest.raises(InputError, match=told):
        fetch(given)


def test_a_cache_that_cannot_be_written_is_named(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(InputError, match=r"file/qplan/models/\w+ cannot be written: "):
        fetch(url)
