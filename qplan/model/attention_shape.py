"""What a model caches of a token, from its config."""

from __future__ import annotations

from typing import Any

from qplan.cost.kv_cache import KvShape

_WITHOUT_CACHE = frozenset({"conv", "linear_attention"})
"""Types of layers that attend to nothing."""


def kv_shape(config: Any) -> KvShape:  # noqa: ANN401 - a PreTrainedConfig
    """Layers, heads and their width; MNN keeps every token of a layer, whatever its window."""
    heads = int(config.num_attention_heads)
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    kinds = getattr(config, "layer_types", None) or ["full_attention"] * config.num_hidden_layers
    layers = sum(kind not in _WITHOUT_CACHE for kind in kinds)
    return KvShape(layers, int(getattr(config, "num_key_value_heads", None) or heads), int(width))
