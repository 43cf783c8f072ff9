"""A tokenizer as Llama 2 brought it: a sentencepiece model, and no ``tokenizer.json``."""

from __future__ import annotations

import json
from pathlib import Path

import sentencepiece

from tests.support.tiny_models import words


def save_sentencepiece(folder: Path, size: int, **settings: object) -> None:
    """Leave a ``tokenizer.model`` of lower-case words and bytes as the folder's only tokenizer.

    Args:
        folder: a model's.
        size: of the vocabulary.
        settings: more for ``tokenizer_config.json``.
    """
    for name in ("tokenizer.json", "chat_template.jinja"):
        (folder / name).unlink(missing_ok=True)
    text = folder / "words"
    text.write_text(words(4000).replace(" ", "\n"))
    sentencepiece.SentencePieceTrainer.train(
        input=str(text),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=size,
        model_type="bpe",
        byte_fallback=True,
        character_coverage=1.0,
        minloglevel=2,
    )
    for name in ("words", "tokenizer.vocab"):
        (folder / name).unlink()
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "add_bos_token": True, "legacy": False}
    config = {"tokenizer_class": "LlamaTokenizer"} | special | settings
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
