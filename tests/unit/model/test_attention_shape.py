"""Layers, heads and widths of what a model caches."""

from __future__ import annotations

from transformers import Lfm2Config, LlamaConfig, Qwen3Config

from qplan.cost.kv_cache import KvShape
from qplan.model.attention_shape import kv_shape


def test_shapes_of_configs() -> None:
    llama = LlamaConfig(hidden_size=576, num_attention_heads=9, num_key_value_heads=3, num_hidden_layers=30)
    assert kv_shape(llama) == KvShape(30, 3, 64)
    qwen3 = Qwen3Config(hidden_size=64, head_dim=128, num_attention_heads=4, num_key_value_heads=2, num_hidden_layers=5)
    assert kv_shape(qwen3) == KvShape(5, 2, 128)


def test_layers_that_attend_to_nothing_cache_nothing() -> None:
    kinds = ["conv", "conv", "full_attention", "conv"]
    config = Lfm2Config(
        hidden_size=64, num_attention_heads=4, num_key_value_heads=2, num_hidden_layers=4, layer_types=kinds
    )
    assert kv_shape(config) == KvShape(1, 2, 16)
