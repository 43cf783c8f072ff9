"""Texts begin and answers end on the engine as with Hugging Face's files, whatever the exporter guesses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers.processors import TemplateProcessing

from qplan.mnn.build.tokenizer_ids import settle_ids
from qplan.mnn.preflight.tokenizer_file import TokenizerFile, read_tokenizer
from tests.support.tiny_models import make_tokenizer

BODY = b"3 0\na\nb\nc\n"


@pytest.fixture
def view(tmp_path: Path) -> Path:
    """What the exporter is given: a tokenizer that begins every text with its token 0."""
    tokenizer = make_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<eos> $A", special_tokens=[("<eos>", 0)])
    folder = tmp_path / "view"
    tokenizer.save_pretrained(folder)
    (folder / "config.json").write_text('{"vocab_size": 320, "eos_token_id": 2}')
    return folder


def settled(folder: Path, view: Path, header: bytes) -> TokenizerFile:
    (folder / "tokenizer.mtok").write_bytes(header + BODY)
    settle_ids(folder, view)
    assert (folder / "tokenizer.mtok").read_bytes().endswith(b"\n" + BODY)
    return read_tokenizer(folder / "tokenizer.mtok")


def test_the_mark_of_a_words_beginning_does_not_begin_every_text(tmp_path: Path, view: Path) -> None:
    found = settled(tmp_path, view, b"430 3\n2 1 2\n5 6 2 0 259\n")
    assert found == TokenizerFile(2, (5, 6), (2,), (0,))


def test_what_begins_no_text_is_left_so(tmp_path: Path, view: Path) -> None:
    assert settled(tmp_path, view, b"430 3\n0 1 0\n2\n").prefix == ()


@pytest.mark.parametrize(
    ("generation", "stops"),
    [
        (None, (7, 2)),
        ({}, (7, 2)),
        ({"eos_token_id": 9}, (7, 9)),
        ({"eos_token_id": [9, 7, 11]}, (7, 9, 11)),
        ({"eos_token_id": [9, 5000, -1]}, (7, 9)),
    ],
)
def test_answers_end_where_generation_config_says(
    tmp_path: Path, view: Path, generation: object, stops: tuple[int, ...]
) -> None:
    if generation is not None:
        (view / "generation_config.json").write_text(json.dumps(generation))
    assert settled(tmp_path, view, b"430 3\n1 1 1\n5 7 0\n") == TokenizerFile(2, (5,), stops, (0,))


def test_a_file_of_another_kind_is_left_alone(tmp_path: Path, view: Path) -> None:
    (tmp_path / "tokenizer.txt").write_bytes(b"something else")
    settle_ids(tmp_path, view)
    assert (tmp_path / "tokenizer.txt").read_bytes() == b"something else"
