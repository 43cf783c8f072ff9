"""Tiny models with the settings of real configs that exporters may drop: windows, scaled rotations, caps, norms.

Windows and original contexts are 64 tokens, so that sequences of 48 and 200 tokens lie within and beyond them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

BOUNDARY = 64
"""Tokens up to which a window or a scaled rotation changes nothing."""

WINDOW, ROTATION = "sliding window", "rope "

_HEAD_DIM = 16
_ROTATED = {"phi": 0.5, "stablelm": 0.25}
"""Share of a head's features that an architecture rotates, where that is not all."""

_ROTATIONS: dict[str, dict[str, Any]] = {
    "linear": {"factor": 4.0},
    "dynamic": {"factor": 4.0},
    "yarn": {"factor": 4.0, "original_max_position_embeddings": BOUNDARY},
    "longrope": {"factor": 4.0, "original_max_position_embeddings": BOUNDARY},
    "llama3": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": BOUNDARY,
    },
}

_WINDOWS: dict[str, dict[str, Any]] = {
    "mistral": {"sliding_window": BOUNDARY},
    "phi3": {"sliding_window": BOUNDARY},
    "qwen2": {"use_sliding_window": True, "sliding_window": BOUNDARY, "max_window_layers": 1},
    "qwen3": {"use_sliding_window": True, "sliding_window": BOUNDARY, "max_window_layers": 0},
    "qwen3_moe": {"use_sliding_window": True, "sliding_window": BOUNDARY},
    "gemma2": {"sliding_window": BOUNDARY},
}

_OTHERS: dict[tuple[str, str], dict[str, Any]] = {
    ("gemma2", "attn_logit_softcapping"): {"attn_logit_softcapping": 2.0},
    ("gemma2", "final_logit_softcapping"): {"final_logit_softcapping": 3.0},
    ("phi", "qk_layernorm"): {"qk_layernorm": True},
    ("stablelm", "qk_layernorm"): {"qk_layernorm": True},
    ("stablelm", "use_parallel_residual"): {"use_parallel_residual": True},
    ("stablelm", "use_qkv_bias"): {"use_qkv_bias": True},
    ("ernie4_5", "use_bias"): {"use_bias": True},
    ("llama", "attention_bias"): {"attention_bias": True},
    ("llama", "mlp_bias"): {"mlp_bias": True},
    ("qwen3", "attention_bias"): {"attention_bias": True},
    ("qwen3_moe", "attention_bias"): {"attention_bias": True},
    ("gemma", "attention_bias"): {"attention_bias": True},
    ("gemma2", "attention_bias"): {"attention_bias": True},
    ("hunyuan_v1_dense", "attention_bias"): {"attention_bias": True},
}

_SCALED = (
    *("ernie4_5", "gemma", "gemma2", "hunyuan_v1_dense", "llama", "mistral", "phi", "qwen2", "qwen3", "qwen3_moe"),
    "stablelm",
)
"""Architectures that take every rotation; Phi-3 takes longrope alone."""


def setting_specimens() -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Every architecture and setting that is measured: model type, setting, and what its config holds."""
    for model_type, sizes in _WINDOWS.items():
        yield model_type, WINDOW, _without_caps(model_type) | sizes
    for model_type in _SCALED:
        for kind in _ROTATIONS:
            yield model_type, f"{ROTATION}{kind}", _without_caps(model_type) | _rotation(model_type, kind)
    yield "phi3", f"{ROTATION}longrope", _rotation("phi3", "longrope")
    for (model_type, setting), sizes in _OTHERS.items():
        yield model_type, setting, _without_caps(model_type) | sizes


def _without_caps(model_type: str) -> dict[str, Any]:
    """Gemma 2 has a window and two caps unless it is told otherwise: one setting is measured at a time."""
    if model_type != "gemma2":
        return {}
    return {"sliding_window": 4096, "attn_logit_softcapping": None, "final_logit_softcapping": None}


def _rotation(model_type: str, kind: str) -> dict[str, Any]:
    share = _ROTATED.get(model_type, 1.0)
    rotation = {"rope_type": kind, "rope_theta": 10000.0} | _ROTATIONS[kind]
    if model_type in _ROTATED:
        rotation["partial_rotary_factor"] = share
    if kind == "longrope":
        pairs = int(_HEAD_DIM * share) // 2
        rotation["short_factor"] = [1.0 + 0.05 * pair for pair in range(pairs)]
        rotation["long_factor"] = [1.0 + 2.0 * pair for pair in range(pairs)]
    sizes: dict[str, Any] = {"rope_parameters": rotation}
    if kind == "dynamic":
        sizes["max_position_embeddings"] = BOUNDARY
    if model_type == "phi3":
        sizes["original_max_position_embeddings"] = BOUNDARY
    return sizes
