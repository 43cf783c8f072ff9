"""A Hugging Face model under llama.cpp's names."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from qplan.errors import InputError
from qplan.model.load import LoadedModel

ARCHITECTURES = {"qwen2": "qwen2", "llama": "llama"}
"""llama.cpp's names of those whose tensors are known here, by transformers' ``model_type``."""

_LINEARS = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_NORMS = {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}
_HEAD, _TABLE = "output.weight", "token_embd.weight"


def write_tensors(loaded: LoadedModel, folder: Path) -> Path:
    """Write ``weights.npz`` and ``model.json`` for ``native.py convert``.

    Raises:
        InputError: an architecture whose tensors have no names here.
    """
    config = _model(loaded).config
    if config.model_type not in ARCHITECTURES:
        msg = f"{config.model_type}: known to this report are {', '.join(ARCHITECTURES)}"
        raise InputError(msg)
    values = {
        "architecture": ARCHITECTURES[config.model_type],
        "context": config.max_position_embeddings,
        "hidden": config.hidden_size,
        "layers": config.num_hidden_layers,
        "inner": config.intermediate_size,
        "heads": config.num_attention_heads,
        "kv_heads": config.num_key_value_heads,
        "head_width": getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
        "rope_base": float(config.rope_parameters["rope_theta"]),
        "norm_eps": config.rms_norm_eps,
        "vocabulary": config.vocab_size,
    }
    (folder / "model.json").write_text(json.dumps(values), encoding="utf-8")
    path = folder / "weights.npz"
    _save(path, dict(_named(loaded)))
    return path


def _model(loaded: LoadedModel) -> Any:  # noqa: ANN401 - its class depends on the architecture
    return loaded.model


def _save(path: Path, tensors: Mapping[str, Tensor]) -> None:
    arrays: dict[str, Any] = {name: tensor.float().numpy() for name, tensor in tensors.items()}
    np.savez(path, **arrays)


def _tied(loaded: LoadedModel) -> bool:
    return bool(_model(loaded).config.tie_word_embeddings)


def _named(loaded: LoadedModel) -> Iterator[tuple[str, Tensor]]:
    model = _model(loaded)
    config = model.config
    yield _TABLE, model.model.embed_tokens.weight.data
    for layer, block in enumerate(model.model.layers):
        for path, name in _NORMS.items():
            yield f"blk.{layer}.{name}.weight", block.get_submodule(path).weight.data
        for path, name in _LINEARS.items():
            module = block.get_submodule(path)
            heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}.get(name)
            for kind in ("weight", "bias"):
                tensor = getattr(module, kind)
                if tensor is None:
                    continue
                data = tensor.data
                if heads is not None and config.model_type == "llama":  # its rotation takes neighbors, not halves
                    halves = data.reshape(heads, 2, data.shape[0] // heads // 2, *data.shape[1:])
                    data = halves.swapaxes(1, 2).reshape(data.shape)
                yield f"blk.{layer}.{name}.{kind}", data.contiguous()
    yield "output_norm.weight", model.model.norm.weight.data
    if not _tied(loaded):
        yield _HEAD, model.lm_head.weight.data
