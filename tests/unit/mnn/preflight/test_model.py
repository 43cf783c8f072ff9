"""Folders that somebody made to do harm: a finding each, at once, and nothing is read that is not theirs."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from qplan.mnn.engines import EngineVersion
from qplan.mnn.preflight.check import check_folder
from qplan.mnn.preflight.model import ModelFolder

ENGINE = EngineVersion(3, 6, 1)


def fifo(path: Path) -> None:
    path.unlink(missing_ok=True)
    os.mkfifo(path)


def endless(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.symlink_to("/dev/zero")


def sparse(path: Path) -> None:
    with path.open("wb") as stream:
        stream.truncate(10 << 30)


def deep(path: Path) -> None:
    path.write_text('{"a":' * 200_000 + "1" + "}" * 200_000)


def many_digits(path: Path) -> None:
    path.write_text('{"hidden_size": ' + "9" * 5000 + "}")


def surrogate(path: Path) -> None:
    path.write_bytes(b'{"a": "\xff\xfe"}')


def a_list(path: Path) -> None:
    path.write_text("[1]")


def found(folder: Path) -> set[tuple[str, str]]:
    return {(finding.code, finding.where) for finding in ModelFolder.read(folder, ENGINE).findings}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What the settings name is there; none of it is a model."""
    home = tmp_path / "model"
    home.mkdir()
    (home / "config.json").write_text(json.dumps({"tokenizer_file": "tokenizer.mtok"}))
    (home / "llm_config.json").write_text(json.dumps({"hidden_size": 64}))
    for name in ("llm.mnn", "llm.mnn.weight", "tokenizer.mtok", "embeddings_bf16.bin"):
        (home / name).write_bytes(b"\0" * 64)
    return home


@pytest.mark.parametrize("make", [fifo, endless, sparse, deep, many_digits, surrogate, a_list])
@pytest.mark.parametrize("name", ["config.json", "llm_config.json"])
def test_settings_that_are_no_settings(folder: Path, name: str, make: Callable[[Path], None]) -> None:
    make(folder / name)
    assert ("bad-json", name) in found(folder)


@pytest.mark.parametrize("make", [fifo, endless])
@pytest.mark.parametrize("name", ["llm.mnn", "llm.mnn.weight", "tokenizer.mtok", "embeddings_bf16.bin"])
def test_files_that_never_end(folder: Path, name: str, make: Callable[[Path], None]) -> None:
    make(folder / name)
    assert ("not-a-file", name) in found(folder)


@pytest.mark.parametrize(("name", "code"), [("llm.mnn", "bad-graph"), ("tokenizer.mtok", "bad-tokenizer")])
def test_files_of_ten_gigabytes_of_nothing(folder: Path, name: str, code: str) -> None:
    sparse(folder / name)
    assert (code, name) in found(folder)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("llm_config", "/dev/zero"),
        ("llm_config", "../elsewhere.json"),
        ("llm_model", "/etc/passwd"),
        ("llm_weight", "../../weights"),
        ("tokenizer_file", "sub/../../tokenizer"),
        ("base_dir", "/etc"),
    ],
)
def test_settings_that_point_out_of_the_folder(folder: Path, key: str, value: str) -> None:
    (folder / "config.json").write_text(json.dumps({key: value}))
    assert "outside-folder" in {code for code, _ in found(folder)}


@pytest.mark.parametrize("value", ["../elsewhere.json", "sub/../../elsewhere.json", "/dev/zero"])
def test_the_current_folder_has_an_outside_too(folder: Path, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "config.json").write_text(json.dumps({"llm_config": value}))
    monkeypatch.chdir(folder)
    assert "outside-folder" in {code for code, _ in found(Path())}


def test_pictures_and_sounds_may_not_come_from_outside_either(folder: Path) -> None:
    for kind in ("visual", "audio"):
        (folder / "config.json").write_text(json.dumps({f"is_{kind}": True, f"{kind}_model": "/dev/zero"}))
        assert "outside-folder" in {code for code, _ in found(folder)}


@pytest.mark.parametrize("name", ["config.json", "llm_config.json", "llm.mnn", "tokenizer.mtok"])
def test_a_kernel_file_that_says_it_is_regular(folder: Path, name: str) -> None:
    kernel = Path("/proc/kmsg")
    if not os.access(kernel, os.R_OK):
        pytest.skip("needs the right to read the kernel's messages")
    (folder / name).unlink()
    (folder / name).symlink_to(kernel)
    assert name in {where for _, where in found(folder)}


@pytest.mark.parametrize("key", ["llm_model", "llm_config", "base_dir", "visual_model"])
@pytest.mark.parametrize("value", ["m" * 5000, "n/" * 3000, "\0", ["m"]])
def test_settings_that_name_what_cannot_be_a_file(folder: Path, key: str, value: object) -> None:
    (folder / "config.json").write_text(json.dumps({key: value, "is_visual": True}))
    assert f"bad-setting {key}" in {f"{f.code} {f.where}" for f in check_folder(folder, ENGINE).findings}


def test_checksums_of_what_cannot_be_a_file(folder: Path) -> None:
    files = {"m" * 300: {"bytes": 1, "sha256": "0"}}
    (folder / "checksums.json").write_text(json.dumps({"kind": "checksums", "schema": 1, "files": files}))
    assert "bad-checksums" in {finding.code for finding in check_folder(folder, ENGINE).findings}


def test_a_link_to_a_file_is_a_file(folder: Path, tmp_path: Path) -> None:
    (folder / "llm.mnn").rename(tmp_path / "blob")
    (folder / "llm.mnn").symlink_to(tmp_path / "blob")
    assert {code for code, where in found(folder) if where == "llm.mnn"} == {"bad-graph"}
