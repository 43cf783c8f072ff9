"""The architectures that transformers offers and MNN's exporter claims, each as a tiny model."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from qplan.errors import InputError
from qplan.model.setting_specimens import setting_specimens

VOCABULARY = 320

SIZES: dict[str, Any] = {
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
    setting: str = ""
    """The one setting that it was made to measure, as `qplan.compat.settings` names it; none for a plain specimen."""


_PLAIN: dict[str, Specimen] = {
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


def setting_name(model_type: str, setting: str) -> str:
    """Name of the specimen that a setting of an architecture is measured with, e.g. ``llama-rope-linear``."""
    return f"{model_type}-{setting.strip().replace(' ', '-')}"


_BASES = {specimen.model_type: specimen for specimen in reversed(_PLAIN.values())}

SPECIMENS: dict[str, Specimen] = _PLAIN | {
    setting_name(model_type, setting): Specimen(model_type, _BASES[model_type].sizes | sizes, setting)
    for model_type, setting, sizes in setting_specimens()
}
"""Specimens by their name in the compatibility table, in its order: the plain ones, then one for every setting."""


def check_architectures(names: Iterable[str]) -> None:
    """Refuse names that no specimen has.

    Raises:
        InputError: lists them, and those that exist.
    """
    unknown = [name for name in names if name not in SPECIMENS]
    if unknown:
        msg = f"no specimens are called {', '.join(unknown)}; there are {', '.join(SPECIMENS)}"
        raise InputError(msg)
