"""Tiny random models of every architecture that transformers offers and MNN's exporter claims, to measure both with."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from qplan.errors import InputError

VOCABULARY = 320

_SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 0,
    "eos_token_id": 0,
    # large enough that attention is not uniform: a wrong mask or rotation must show
    "initializer_range": 0.15,
    "tie_word_embeddings": False,
}
_LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}


@dataclass(frozen=True)
class Specimen:
    """How a tiny model of an architecture is made."""

    model_type: str
    """transformers' name of the architecture."""
    sizes: dict[str, Any] = field(default_factory=dict)
    """What differs from the usual sizes."""


SPECIMENS: dict[str, Specimen] = {
    "llama": Specimen("llama"),
    "llama-tied": Specimen("llama", {"tie_word_embeddings": True}),
    "llama3-rope": Specimen("llama", {"rope_parameters": _LLAMA3_ROPE}),
    "qwen2": Specimen("qwen2", {"tie_word_embeddings": True}),
    "qwen3": Specimen("qwen3", {"tie_word_embeddings": True}),
    "mistral": Specimen("mistral", {"sliding_window": None}),
    "mistral-window": Specimen("mistral", {"sliding_window": 16}),
    "gemma": Specimen("gemma", {"tie_word_embeddings": True}),
    "gemma2": Specimen("gemma2", {"tie_word_embeddings": True, "query_pre_attn_scalar": 16, "sliding_window": 64}),
    "gemma2-uncapped": Specimen(
        "gemma2",
        {
            "tie_word_embeddings": True,
            "query_pre_attn_scalar": 16,
            "sliding_window": 64,
            "attn_logit_softcapping": None,
            "final_logit_softcapping": None,
        },
    ),
    "gemma3_text": Specimen(
        "gemma3_text",
        {
            "tie_word_embeddings": True,
            "query_pre_attn_scalar": 16,
            "sliding_window": 64,
            "layer_types": ["sliding_attention", "full_attention"],
        },
    ),
    "phi": Specimen("phi", {"num_key_value_heads": 4}),
    "phi3": Specimen("phi3", {"num_key_value_heads": 4}),
    "stablelm": Specimen("stablelm"),
    "ernie4_5": Specimen("ernie4_5"),
    "hunyuan_v1_dense": Specimen("hunyuan_v1_dense"),
    "lfm2": Specimen("lfm2", {"layer_types": ["conv", "full_attention"]}),
    # every fourth layer has no rotation: here the second
    "smollm3": Specimen("smollm3", {"tie_word_embeddings": True, "no_rope_layers": [1, 0]}),
    "granite": Specimen("granite", {"logits_scaling": 2.0, "residual_multiplier": 0.5}),
    "glm4": Specimen("glm4"),
    "olmo": Specimen("olmo"),
    "olmo2": Specimen("olmo2"),
    "cohere": Specimen("cohere", {"tie_word_embeddings": True}),
    "starcoder2": Specimen("starcoder2"),
    "exaone4": Specimen("exaone4", {"sliding_window": 64, "sliding_window_pattern": 4}),
    "qwen2_moe": Specimen(
        "qwen2_moe",
        {
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 32,
            "shared_expert_intermediate_size": 32,
        },
    ),
    "qwen3_moe": Specimen(
        "qwen3_moe",
        {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "norm_topk_prob": True},
    ),
    "gpt_oss": Specimen("gpt_oss", {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 16}),
    "qwen3_next": Specimen("qwen3_next", {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}),
}
"""By the name in the compatibility table; order is that of the table."""


def save_specimen(name: str, folder: Path, *, seed: int = 7, **sizes: Any) -> Path:  # noqa: ANN401 - model settings
    """Write a tiny random model and its tokenizer, as Hugging Face saves them.

    Args:
        name: of `SPECIMENS`.
        folder: where to.
        seed: of the weights.
        sizes: other settings than the specimen's.

    Raises:
        InputError: no such specimen.
    """
    if name not in SPECIMENS:
        msg = f"no specimen is called {name!r}; there are {', '.join(SPECIMENS)}"
        raise InputError(msg)
    specimen = SPECIMENS[name]
    torch.manual_seed(seed)
    config = AutoConfig.for_model(specimen.model_type, **(_SIZES | specimen.sizes | sizes))
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
    """A byte-level tokenizer of `VOCABULARY` tokens, trained on random words."""
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
    special = {"eos_token": "<eos>", "pad_token": "<eos>"}
    return PreTrainedTokenizerFast(tokenizer_object=inner, **special)


def token_ids(count: int) -> list[int]:
    """Tokens that specimens are run with, always the same."""
    return [int(token) for token in np.random.default_rng(0).integers(1, VOCABULARY, count)]
