"""What configurations ask of attention and positions, refused or let in before a model is loaded."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoConfig

from qplan.errors import InputError
from qplan.jobs.model_context import check_context
from qplan.jobs.options import AnalyzeOptions

SIZES: dict[str, Any] = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "tie_word_embeddings": False,
}
TIED = {"tie_word_embeddings": True}
WINDOW = {"use_sliding_window": True, "sliding_window": 96}
NARROW = {"hidden_size": 100, "num_attention_heads": 5, "num_key_value_heads": 5, "head_dim": 20}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "norm_topk_prob": True}


def rope(kind: str, **more: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10000.0, **more}}


LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
LONGROPE = {"short_factor": [1.0] * 8, "long_factor": [2.0] * 8, "factor": 8.0}

ACCEPTED: dict[str, tuple[str, dict[str, Any]]] = {
    "wide heads": ("llama", {"head_dim": 32}),
    "wide heads of mistral": ("mistral", {"head_dim": 40, "sliding_window": None}),
    "wide heads of qwen3": ("qwen3", {"head_dim": 48, **TIED}),
    "odd heads": ("qwen2", NARROW | {"hidden_size": 60, "head_dim": 12}),
    "biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "biases of qwen3": ("qwen3", {"attention_bias": True}),
    "one key head": ("llama", {"num_key_value_heads": 1}),
    "narrow": ("llama", NARROW | {"intermediate_size": 172}),
    "narrow and tied": ("qwen2", NARROW | {"intermediate_size": 172, **TIED}),
    "odd width": ("llama", {"hidden_size": 45, "num_attention_heads": 3, "num_key_value_heads": 3}),
    "odd vocabulary": ("llama", {"vocab_size": 331, **TIED}),
    "one layer": ("qwen2", {"num_hidden_layers": 1, **TIED}),
    "gelu": ("llama", {"hidden_act": "gelu"}),
    "relu": ("qwen2", {"hidden_act": "relu"}),
    "phi": ("phi", {"num_key_value_heads": 4, "partial_rotary_factor": 0.5}),
    "partial rotation of phi3": ("phi3", {"num_key_value_heads": 4, **rope("default", partial_rotary_factor=0.5)}),
    "partial rotation of stablelm": ("stablelm", {"use_qkv_bias": True, **rope("default", partial_rotary_factor=0.25)}),
    "gemma": ("gemma", TIED),
    "large epsilon": ("llama", {"rms_norm_eps": 1e-2}),
    "other theta": ("qwen2", rope("default", rope_theta=1e6) | TIED),
    "linear by one": ("llama", rope("linear", factor=1.0)),
    "experts": ("qwen3_moe", EXPERTS),
    "some layers without experts": ("qwen3_moe", EXPERTS | {"mlp_only_layers": [0]}),
    "ernie": ("ernie4_5", {"use_bias": True}),
    "window switched off": ("qwen2", {"use_sliding_window": False, "sliding_window": 96}),
    "window as long as the context": ("mistral", {"sliding_window": 512}),
}

REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "llama3": ("llama", rope("llama3", factor=8.0, **LLAMA3), r"rope_type llama3 \(factor 8\)"),
    "linear": ("qwen2", rope("linear", factor=4.0), r"rope_type linear \(factor 4\): .* wrong at every length"),
    "longrope": (
        "phi3",
        {"num_key_value_heads": 4, "original_max_position_embeddings": 64, **rope("longrope", **LONGROPE)},
        "rope_type longrope.*--max-context 64",
    ),
    "mistral window": ("mistral", {"sliding_window": 96}, "sliding_window 96: .*give --max-context 96"),
    "long mistral window": (
        "mistral",
        {"sliding_window": 256, "max_position_embeddings": 2048},
        "sliding_window 256: .* beyond 256 tokens of its 2048 .*give --max-context 256",
    ),
    "qwen2 window": ("qwen2", WINDOW | {"max_window_layers": 1}, "sliding_window 96: .*give --max-context 96"),
    "qwen3 window": ("qwen3", WINDOW | {"max_window_layers": 0}, "sliding_window 96: .*give --max-context 96"),
    "phi3 window": ("phi3", {"num_key_value_heads": 4, "sliding_window": 64}, "sliding_window 64"),
    "qk_layernorm": ("phi", {"num_key_value_heads": 4, "qk_layernorm": True}, "qk_layernorm true: .* every length"),
    "caps": ("gemma2", TIED | {"query_pre_attn_scalar": 16, "sliding_window": 4096}, "attn_logit_softcapping 50"),
    "caps and window": ("gemma2", TIED | {"query_pre_attn_scalar": 16, "sliding_window": 96}, "softcapping 50"),
    "parallel": ("stablelm", {"use_parallel_residual": True}, "use_parallel_residual true: .* fails with it"),
    "hunyuan": ("hunyuan_v1_dense", {}, "model_type hunyuan_v1_dense: .*use --llmexport with MNN checkout"),
}


def folder_of(folder: Path, model_type: str, sizes: dict[str, Any]) -> Path:
    """A folder with a configuration, and with weights that nobody reads here."""
    AutoConfig.for_model(model_type, **(SIZES | sizes)).save_pretrained(folder)
    save_file({"x": torch.zeros(1)}, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize("name", ACCEPTED)
def test_what_the_exporter_gets_right_comes_in(tmp_path: Path, name: str) -> None:
    folder = folder_of(tmp_path, *ACCEPTED[name])
    assert check_context(AnalyzeOptions(model=str(folder))).tokens == 512


@pytest.mark.parametrize("name", REFUSED)
def test_what_the_exporter_gets_wrong_is_refused_with_the_setting(tmp_path: Path, name: str) -> None:
    model_type, sizes, message = REFUSED[name]
    folder = folder_of(tmp_path, model_type, sizes)
    with pytest.raises(InputError, match=message):
        check_context(AnalyzeOptions(model=str(folder)))


def test_a_limited_context_is_let_in_and_told(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "mistral", {"sliding_window": 96})
    found = check_context(AnalyzeOptions(model=str(folder), max_context=96, seq_len=96))
    assert (found.tokens, {told.code for told in found.notes}) == (96, {"context-limited", "setting-beyond-context"})
    with pytest.raises(InputError, match="--max-context 1024 is above the model's own context of 512"):
        check_context(AnalyzeOptions(model=str(folder), max_context=1024))
    with pytest.raises(InputError, match="--seq-len 97 is above the model's context of 96 tokens; lower it"):
        check_context(AnalyzeOptions(model=str(folder), max_context=96, seq_len=97))


def test_sequences_are_no_longer_than_a_short_context_unless_they_are_asked_for(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "qwen2", TIED | {"max_position_embeddings": 64})
    options = AnalyzeOptions(model=str(folder))
    assert [told.code for told in check_context(options).notes] == ["sequences-shortened"]
    assert (options.sequence(64), options.sequence(4096)) == (64, 256)
    with pytest.raises(InputError, match="--seq-len 256 is above the model's context of 64 tokens; lower it"):
        check_context(replace(options, seq_len=256))
    assert check_context(replace(options, seq_len=32)).notes == ()
