"""What the exporter must read of a checkpoint: the embedding, and a head that may equal it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from qplan.mnn.build.left_out import kept_of, whole_bytes

WEIGHTS = "model.safetensors"


@pytest.fixture
def folder(model_folders: dict[str, Path], tmp_path: Path) -> Path:
    """An untied Llama."""
    return Path(shutil.copytree(model_folders["llama"], tmp_path / "llama"))


def test_a_head_that_differs_somewhere_is_left_out(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    embedding, head = "model.embed_tokens.weight", "lm_head.weight"
    found = kept_of(folder)
    assert found is not None
    assert found.modules == ("embed_tokens",)
    assert found.peak_bytes < whole_bytes(folder) + 8 * tensors[embedding].numel()

    save_file(tensors | {head: tensors[embedding].clone()}, folder / WEIGHTS, metadata={"format": "pt"})
    same = kept_of(folder)
    assert same is not None
    assert same.modules == ("embed_tokens", "lm_head")
    assert same.peak_bytes > found.peak_bytes

    other = tensors[embedding].clone()
    other[-1, -1] += 1
    save_file(tensors | {head: other}, folder / WEIGHTS, metadata={"format": "pt"})
    assert kept_of(folder) == found


def test_heads_that_only_a_half_precision_makes_equal_are_compared_by_the_exporter(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    head = tensors["model.embed_tokens.weight"].to(torch.bfloat16).float()
    save_file(tensors | {"lm_head.weight": head}, folder / WEIGHTS, metadata={"format": "pt"})
    found = kept_of(folder)
    assert found is not None
    assert found.modules == ("embed_tokens", "lm_head")


def test_a_tied_model_has_one_matrix_and_prefixes_may_be_missing(
    model_folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(model_folders["qwen2"], tmp_path / "qwen2"))
    found = kept_of(folder)
    assert found is not None
    assert found.modules == ("embed_tokens",)
    tensors = {name.removeprefix("model."): tensor for name, tensor in load_file(folder / WEIGHTS).items()}
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    assert kept_of(folder) == found


def test_nothing_is_left_out_of_what_qplan_does_not_know(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "mamba"}))
    assert kept_of(folder) is None
