"""Tiny random models of every architecture that transformers offers and MNN's exporter claims, to measure both with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from qplan.model.specimen_sizes import SIZES, SPECIMENS, VOCABULARY, check_architectures


def save_specimen(name: str, folder: Path, *, seed: int = 7, **sizes: Any) -> Path:  # noqa: ANN401 - model settings
    """Write a tiny random model and its tokenizer, as Hugging Face saves them.

    Args:
        name: a key of `SPECIMENS`.
        folder: where to write it.
        seed: seed of the weights.
        sizes: settings that replace the specimen's.

    Raises:
        InputError: no such specimen.
    """
    check_architectures([name])
    specimen = SPECIMENS[name]
    torch.manual_seed(seed)
    config = AutoConfig.for_model(specimen.model_type, **(SIZES | specimen.sizes | sizes))
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                # norms and biases that are not all ones and zeros
                parameter.add_(torch.randn_like(parameter) * 0.05)
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level tokenizer with `VOCABULARY` tokens, trained on random words."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<eos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    generator = torch.Generator().manual_seed(0)
    letters = torch.randint(0, 26, (400, 4), generator=generator)
    text = " ".join("".join(chr(97 + int(letter)) for letter in row) for row in letters)
    inner.train_from_iterator([text], trainer)
    special = {"eos_token": "<eos>", "pad_token": "<eos>", "unk_token": "<eos>"}
    return PreTrainedTokenizerFast(tokenizer_object=inner, **special)


def token_ids(count: int) -> list[int]:
    """Tokens that specimens are run with, always the same."""
    return [int(token) for token in np.random.default_rng(0).integers(1, VOCABULARY, count)]
