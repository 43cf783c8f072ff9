"""Weight files are read by their headers: what is no weight file, or not all of one, is told apart."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from qplan.errors import InputError
from qplan.model.headers import TensorHeader, check_no_pointer, read_header, read_headers

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "ab" * 32 + "\nsize 988097824\n"


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    save_file({"a.weight": np.zeros((3, 5), np.float32), "b": np.zeros(2, np.float16)}, path, {"format": "pt"})
    return path


def raw(path: Path, header: object, data: bytes = b"") -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def test_names_types_and_shapes_are_read(weights: Path) -> None:
    assert read_header(weights) == {"a.weight": TensorHeader("F32", (3, 5)), "b": TensorHeader("F16", (2,))}


def test_a_git_lfs_pointer_is_told_from_the_file(tmp_path: Path, weights: Path) -> None:
    check_no_pointer(weights)
    pointer = tmp_path / "tokenizer.json"
    pointer.write_text(POINTER)
    for read in (read_header, check_no_pointer):
        with pytest.raises(InputError, match=r"is a Git LFS pointer, .* of 988,097,824 bytes .* run 'git lfs pull' in"):
            read(pointer)
    pointer.write_text("version https://git-lfs.github.com/spec/v1\nsize many\n")
    with pytest.raises(InputError, match="Git LFS pointer, not the file itself"):
        check_no_pointer(pointer)


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        (0, "is empty; download the model again"),
        (5, "is cut after 5 bytes, within its header"),
        (40, "is cut after 40 bytes, within its header of "),
        (-1, r"is cut after (\d+) of (\d+) bytes; download"),
    ],
)
def test_a_file_that_was_cut_says_after_how_much(weights: Path, keep: int, message: str) -> None:
    weights.write_bytes(weights.read_bytes()[:keep])
    with pytest.raises(InputError, match=message):
        read_header(weights)


def test_a_file_with_more_than_its_tensors_is_damaged(weights: Path) -> None:
    weights.write_bytes(weights.read_bytes() + b"more")
    with pytest.raises(InputError, match=r"is damaged: it has (\d+) bytes, and its header accounts for"):
        read_header(weights)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (b"{", "it is not JSON"),
        (b"[" * 100_000, "nested too deeply"),
        ([], "a JSON list instead of an object"),
        ({"a": 1}, "'a' has no type, shape and place"),
        ({"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 0]}}, "'a' has no type, shape and place"),
        ({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0]}}, "'a' has no type, shape and place"),
        ({"a": {"dtype": ["F32"], "shape": [1], "data_offsets": [0, 4]}}, "'a' has no type, shape and place"),
    ],
)
def test_a_header_that_makes_no_sense_is_refused(tmp_path: Path, header: object, message: str) -> None:
    with pytest.raises(InputError, match=f"is no sound safetensors file: in its header, .*{message}"):
        read_header(raw(tmp_path / "model.safetensors", header))


def test_a_length_that_lies_costs_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"\xff" * 64)
    with pytest.raises(InputError, match="is no safetensors file: its header would have"):
        read_header(path)


def test_what_would_block_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "model.safetensors")
    with pytest.raises(InputError, match="is no regular file"):
        read_header(tmp_path / "model.safetensors")


def test_a_tensor_in_two_files_is_ambiguous(weights: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.safetensors"
    save_file({"b": np.zeros(2, np.float16)}, other)
    with pytest.raises(InputError, match=r"other\.safetensors holds b, as another weight file"):
        read_headers([weights, other])
