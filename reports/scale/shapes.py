"""Models with the shapes of known ones and random weights in bfloat16, written layer by layer.

``python -m reports.scale.shapes qwen2.5-7b FOLDER``. No more than one layer or embedding is ever held. What such a
model says is meaningless, and so are its losses; files, bytes and seconds are those of the real one.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import Qwen2Config, Qwen3Config

import qplan.demo

EMBEDDED = Path(qplan.demo.__file__).parent / "stdlib-3m"
"""Model whose tokenizer random models get: it knows 4,096 tokens of any vocabulary."""

SHAPES: dict[str, dict[str, Any]] = {
    "qwen2.5-0.5b": {
        "vocab_size": 151936,
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "tie_word_embeddings": True,
    },
    "qwen2.5-7b": {
        "vocab_size": 152064,
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "tie_word_embeddings": False,
    },
    "qwen3-0.6b": {
        "vocab_size": 151936,
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "tie_word_embeddings": True,
    },
}
"""Configurations as the model cards give them."""

LOGITS = 2.5
"""Standard deviation of the logits of a token, about a trained model's."""

BRANCH = 0.3
"""What attention and MLP each add to the residual stream, so that it grows mildly."""

SPREAD = 0.3
"""Standard deviation of the logarithm of norm weights: channels differ, as trained ones do."""


def write_shape(shape: str, folder: Path) -> None:
    """Write a model's folder, unless it is there and whole; the same bytes every time."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        return
    folder.mkdir(parents=True, exist_ok=True)
    third = shape.startswith("qwen3")  # heads of a width of their own, with norms, and no biases
    kind: Any = Qwen3Config if third else Qwen2Config
    config = kind(
        **SHAPES[shape],
        max_position_embeddings=32768,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        rms_norm_eps=1e-6,
        dtype="bfloat16",
        architectures=["Qwen3ForCausalLM" if third else "Qwen2ForCausalLM"],
    )
    config.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(EMBEDDED / name, folder)
    count = config.num_hidden_layers + 2
    where: dict[str, str] = {}
    total = 0
    for number, tensors in enumerate(_shards(config), 1):
        name = f"model-{number:05d}-of-{count:05d}.safetensors"
        save_file(tensors, folder / name, metadata={"format": "pt"})
        where |= dict.fromkeys(tensors, name)
        total += sum(tensor.nbytes for tensor in tensors.values())
    # the index comes last: a folder with one is whole
    index.write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": where}, indent=1), encoding="utf-8")


def _shards(config: Any) -> Iterator[dict[str, Tensor]]:  # noqa: ANN401 - transformers types its fields as optional
    """The embedding, each layer, and what comes behind them."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int, deviation: float) -> Tensor:
        return torch.empty(shape, dtype=torch.bfloat16).normal_(0, deviation, generator=generator)

    def norm(width: int = config.hidden_size) -> Tensor:
        return normal(width, deviation=SPREAD).float().exp().bfloat16()

    def linear(name: str, rows: int, columns: int, gain: float) -> dict[str, Tensor]:
        return {f"{name}.weight": normal(rows, columns, deviation=gain / math.sqrt(columns))}

    hidden, inner, vocabulary = config.hidden_size, config.intermediate_size, config.vocab_size
    own = getattr(config, "head_dim", None)
    width = own or hidden // config.num_attention_heads
    queries, keys = width * config.num_attention_heads, width * config.num_key_value_heads
    logits = LOGITS / math.sqrt(hidden)
    yield {"model.embed_tokens.weight": normal(vocabulary, hidden, deviation=logits)}
    for index in range(config.num_hidden_layers):
        layer = f"model.layers.{index}"
        tensors = {f"{layer}.input_layernorm.weight": norm(), f"{layer}.post_attention_layernorm.weight": norm()}
        for kind, rows in (("q", queries), ("k", keys), ("v", keys)):
            tensors |= linear(f"{layer}.self_attn.{kind}_proj", rows, hidden, 1.0)
            if own is None:
                tensors[f"{layer}.self_attn.{kind}_proj.bias"] = normal(rows, deviation=0.5)
        if own is not None:
            tensors |= {f"{layer}.self_attn.{kind}_norm.weight": norm(width) for kind in ("q", "k")}
        tensors |= linear(f"{layer}.self_attn.o_proj", hidden, queries, BRANCH)
        tensors |= linear(f"{layer}.mlp.gate_proj", inner, hidden, 1.0)
        tensors |= linear(f"{layer}.mlp.up_proj", inner, hidden, 1.0)
        tensors |= linear(f"{layer}.mlp.down_proj", hidden, inner, BRANCH)
        yield tensors
    last = {"model.norm.weight": torch.ones(hidden, dtype=torch.bfloat16)}
    if not config.tie_word_embeddings:
        last["lm_head.weight"] = normal(vocabulary, hidden, deviation=logits)
    yield last


def main() -> None:
    """Write one shape."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shape", choices=sorted(SHAPES))
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    write_shape(options.shape, options.folder)


if __name__ == "__main__":
    main()
