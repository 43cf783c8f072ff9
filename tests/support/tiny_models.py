"""Tiny random models of several architectures, with a tokenizer, in folders as Hugging Face saves them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    Ernie4_5Config,
    Ernie4_5ForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GemmaConfig,
    GemmaForCausalLM,
    HunYuanDenseV1Config,
    HunYuanDenseV1ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PhiConfig,
    PhiForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
    StableLmConfig,
    StableLmForCausalLM,
)

CHAT_TEMPLATE = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}\n{% endfor %}"
VOCABULARY = 320
_SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "initializer_range": 0.15,
}


def words(count: int, seed: int = 0) -> str:
    """A reproducible text of short words."""
    generator = torch.Generator().manual_seed(seed)
    letters = torch.randint(0, 26, (count, 4), generator=generator)
    return " ".join("".join(chr(97 + int(i)) for i in row) for row in letters)


def _qwen2() -> PreTrainedModel:
    return Qwen2ForCausalLM(Qwen2Config(**_SIZES, tie_word_embeddings=True))


def _llama() -> PreTrainedModel:
    # 172: a width that blocks of 64 do not divide
    return LlamaForCausalLM(LlamaConfig(**(_SIZES | {"intermediate_size": 172}), tie_word_embeddings=False))


def _gemma2() -> PreTrainedModel:
    return Gemma2ForCausalLM(Gemma2Config(**_SIZES, head_dim=16, query_pre_attn_scalar=16, sliding_window=64))


def _phi3() -> PreTrainedModel:
    return Phi3ForCausalLM(Phi3Config(**_SIZES, tie_word_embeddings=False))


def _qwen3_moe() -> PreTrainedModel:
    """A dense layer, then one with four experts."""
    sizes = {"num_hidden_layers": 2, "mlp_only_layers": [0], "head_dim": 32, "tie_word_embeddings": False}
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "norm_topk_prob": True}
    return Qwen3MoeForCausalLM(Qwen3MoeConfig(**(_SIZES | sizes | experts)))


def _stablelm(*, parallel: bool) -> PreTrainedModel:
    return StableLmForCausalLM(
        StableLmConfig(**_SIZES, use_parallel_residual=parallel, use_qkv_bias=True, tie_word_embeddings=False)
    )


BUILDERS: dict[str, Callable[[], PreTrainedModel]] = {
    "qwen2": _qwen2,
    "llama": _llama,
    "gemma2": _gemma2,
    "phi3": _phi3,
    "qwen3_moe": _qwen3_moe,
}

EVERY_BUILDER: dict[str, Callable[[], PreTrainedModel]] = BUILDERS | {
    "ernie4_5": lambda: Ernie4_5ForCausalLM(Ernie4_5Config(**_SIZES, head_dim=16, use_bias=True)),
    "gemma": lambda: GemmaForCausalLM(GemmaConfig(**_SIZES, head_dim=16)),
    "hunyuan_v1_dense": lambda: HunYuanDenseV1ForCausalLM(HunYuanDenseV1Config(**_SIZES, head_dim=16)),
    "mistral": lambda: MistralForCausalLM(MistralConfig(**_SIZES, head_dim=32, sliding_window=None)),
    "phi": lambda: PhiForCausalLM(PhiConfig(**_SIZES, qk_layernorm=True, tie_word_embeddings=False)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**_SIZES, head_dim=32, tie_word_embeddings=True)),
    "stablelm": lambda: _stablelm(parallel=False),
    "stablelm, parallel": lambda: _stablelm(parallel=True),
}
"""Every model type of the registry; more than most tests need."""


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer trained on a few lines."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<eos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([words(400)], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, chat_template=CHAT_TEMPLATE, eos_token="<eos>", pad_token="<eos>", unk_token="<eos>"
    )


def save_model(name: str, folder: Path) -> Path:
    """Write a tiny model and its tokenizer into a folder."""
    torch.manual_seed(7)
    model = EVERY_BUILDER[name]()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                # norms and biases that are not all ones and zeros
                parameter.add_(torch.randn_like(parameter) * 0.05)
    model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder
