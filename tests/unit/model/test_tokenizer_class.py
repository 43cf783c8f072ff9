"""Tokenizer classes that transformers does not know."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from qplan.model.inert import TOKENIZER_CONFIG_FILE
from qplan.model.load import load_tokenizer
from qplan.model.tokenizer_class import unknown_tokenizer_class


@pytest.mark.parametrize(
    ("named", "unknown"),
    [
        ({"tokenizer_class": "AcmeTokenizer"}, "AcmeTokenizer"),
        ({"tokenizer_class": "AcmeTokenizer", "auto_map": {"AutoTokenizer": ["acme.AcmeTokenizer", None]}}, None),
        ({"tokenizer_class": "PreTrainedTokenizerFast"}, None),
        ({"tokenizer_class": "LlamaTokenizerFast"}, None),
        ({"tokenizer_class": "Qwen2Tokenizer"}, None),
        ({}, None),
    ],
)
def test_a_class_that_transformers_lacks_is_found(
    model_folders: dict[str, Path], tmp_path: Path, named: dict[str, Any], unknown: str | None
) -> None:
    folder = Path(shutil.copytree(model_folders["qwen2"], tmp_path / "qwen2"))
    path = folder / TOKENIZER_CONFIG_FILE
    rest = {key: value for key, value in json.loads(path.read_text()).items() if key != "tokenizer_class"}
    path.write_text(json.dumps(rest | named))
    assert unknown_tokenizer_class(folder) == unknown
    if unknown is not None:  # and another reads the files
        assert load_tokenizer(folder, folder)("a b")["input_ids"]
