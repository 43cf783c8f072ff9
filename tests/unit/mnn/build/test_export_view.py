"""What llmexport is given: a ``tokenizer.json`` and one chat template, whatever the model's folder has."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from qplan.errors import InputError
from qplan.mnn.build.export_view import export_view
from qplan.model.load import load_model
from tests.support.sentencepiece_files import save_sentencepiece

TEXT = "The quick brown fox, 42 naïve cafés: 你好"


@pytest.fixture
def folder(model_folders: dict[str, Path], tmp_path: Path) -> Path:
    """A copy of the tiny Qwen2."""
    return Path(shutil.copytree(model_folders["qwen2"], tmp_path / "model"))


def in_view(folder: Path) -> Any:
    """The tokenizer that the exporter finds."""
    with export_view(folder, folder.parent / "view") as view:
        assert (view / "tokenizer.json").is_file()
        return AutoTokenizer.from_pretrained(view, use_fast=False)


def settings(folder: Path, **keys: Any) -> None:
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))


@pytest.mark.parametrize("size", [290, 313])
def test_sentencepiece_alone_becomes_a_tokenizer_json(
    model_folders: dict[str, Path], tmp_path: Path, size: int
) -> None:
    folder = Path(shutil.copytree(model_folders["llama"], tmp_path / "model"))
    save_sentencepiece(folder, size)
    own = load_model(str(folder)).tokenizer
    assert own("fox")["input_ids"][0] == own.bos_token_id
    assert in_view(folder)(TEXT)["input_ids"] == own(TEXT)["input_ids"]


def test_ids_that_a_vocabulary_leaves_out_are_filled_up(folder: Path) -> None:
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    # a byte that no UTF-8 text has
    left_out = content["model"]["vocab"].pop("\u00f9")
    path.write_text(json.dumps(content))
    before = load_model(str(folder)).tokenizer(TEXT)["input_ids"]
    assert in_view(folder)(TEXT)["input_ids"] == before
    with export_view(folder, folder.parent / "view") as view:
        tokens = json.loads((view / "tokenizer.json").read_text())["model"]["vocab"]
    assert sorted(tokens.values()) == list(range(len(tokens)))
    assert left_out in tokens.values()
    assert json.loads(path.read_text()) == content


def test_vocabulary_and_merges_become_a_tokenizer_json(folder: Path) -> None:
    whole = json.loads((folder / "tokenizer.json").read_text())["model"]
    (folder / "vocab.json").write_text(json.dumps(whole["vocab"]))
    merges = [one if isinstance(one, str) else " ".join(one) for one in whole["merges"]]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]))
    settings(folder, tokenizer_class="Qwen2Tokenizer", unk_token="<eos>")
    before = load_model(str(folder)).tokenizer(TEXT)["input_ids"]
    (folder / "tokenizer.json").unlink()
    own = load_model(str(folder)).tokenizer
    assert own(TEXT)["input_ids"] == before
    assert in_view(folder)(TEXT)["input_ids"] == before


@pytest.mark.parametrize(
    ("templates", "expected"),
    [
        ([{"name": "tool_use", "template": "x"}, {"name": "default", "template": "{{ 1 }}"}], "{{ 1 }}"),
        ([{"name": "tool_use", "template": "x"}], None),
        ({"tool_use": "x", "default": "{{ 1 }}"}, "{{ 1 }}"),
        ("{{ 2 }}", "{{ 2 }}"),
    ],
)
def test_of_several_templates_the_default_one_is_exported(
    folder: Path, templates: object, expected: str | None
) -> None:
    (folder / "chat_template.jinja").unlink()
    settings(folder, chat_template=templates)
    assert in_view(folder).chat_template == expected


def test_a_tokenizer_that_transformers_cannot_load_is_refused(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer.model").write_bytes(b"")
    with pytest.raises(InputError, match="no usable tokenizer"):
        in_view(folder)
