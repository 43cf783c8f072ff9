"""Makes a small mixture of experts to measure: the embedded model's MLPs, cut into experts and trained for minutes.

Run with ``python -m reports.mixture.subject FOLDER``; on two CPU cores it takes about ten minutes. Sparse upcycling
(arXiv 2212.05055), with the neurons of an MLP divided among its experts (arXiv 2110.01786) instead of copied.
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

import qplan.demo
from qplan.model.load import LoadedModel, load_model
from qplan.model.mixture import split_experts, stacked_state
from qplan.model.registry import architecture_of
from reports.demo import artifacts, corpus
from reports.demo.loop import Recipe, fit
from reports.demo.train import encode_documents

EXPERTS, CHOSEN = 8, 3
_HOME = Path(qplan.demo.__file__).parent / "stdlib-3m"
_ROUNDS = 15
"""Rounds of clustering."""


def config_of(dense: LoadedModel) -> Qwen3MoeConfig:
    """The mixture's configuration: the embedded model's, with an eighth of an MLP to an expert."""
    config: Any = dense.model.config
    known = config.to_dict()
    same = (
        "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
        "num_key_value_heads", "max_position_embeddings", "rope_parameters", "tie_word_embeddings", "bos_token_id",
        "eos_token_id",
    )  # fmt: skip
    return Qwen3MoeConfig(
        **{name: known[name] for name in same},
        num_experts=EXPERTS,
        num_experts_per_tok=CHOSEN,
        moe_intermediate_size=known["intermediate_size"] // EXPERTS,
        norm_topk_prob=True,
    )


def clusters(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Divide neurons with ``rows [neurons, hidden]`` into equal clusters of similar direction.

    Returns:
        the cluster of every neuron, and the clusters' directions ``[experts, hidden]``.
    """
    directions = nn.functional.normalize(rows, dim=1)
    centers = directions[torch.randperm(len(rows))[:EXPERTS]]
    owner = torch.zeros(len(rows), dtype=torch.long)
    for _ in range(_ROUNDS):
        likeness = directions @ centers.T
        room = [len(rows) // EXPERTS] * EXPERTS
        for neuron in likeness.amax(1).argsort(descending=True).tolist():
            best = next(e for e in likeness[neuron].argsort(descending=True).tolist() if room[e])
            owner[neuron], room[best] = best, room[best] - 1
        centers = torch.stack([directions[owner == expert].mean(0) for expert in range(EXPERTS)])
    return owner, nn.functional.normalize(centers, dim=1)


def upcycled(dense: LoadedModel, tokens: Tensor) -> Qwen3MoeForCausalLM:
    """The mixture before training; ``tokens [rows, seq_len]`` give the scales of its query and key norms."""
    sizes: dict[str, float] = {}
    config: Any = dense.model.config

    def note(name: str, output: Tensor) -> None:
        per_head = output.unflatten(-1, (-1, config.hidden_size // config.num_attention_heads))
        sizes[name] = float(per_head.square().mean(-1).sqrt().mean())

    for name, module in dense.model.named_modules():
        if name.endswith(("q_proj", "k_proj")):
            module.register_forward_hook(lambda _m, _a, output, name=name: note(name, output))
    dense.logits(tokens)
    mixture = Qwen3MoeForCausalLM(config_of(dense))
    state, given = mixture.state_dict(), dense.model.state_dict()
    for name in state:
        if name in given:
            state[name] = given[name]
    for index in range(len(dense.layers)):
        prefix = f"model.layers.{index}."
        for norm, projection in (("q_norm", "q_proj"), ("k_norm", "k_proj")):
            state[f"{prefix}self_attn.{norm}.weight"].fill_(sizes[f"{prefix}self_attn.{projection}"])
        gate, up, down = (given[f"{prefix}mlp.{part}_proj.weight"] for part in ("gate", "up", "down"))
        owner, state[f"{prefix}mlp.gate.weight"] = clusters(gate)
        for expert in range(EXPERTS):
            own = owner == expert
            state[f"{prefix}mlp.experts.gate_up_proj"][expert] = torch.cat([gate[own], up[own]])
            # a token sees the mean of its experts in place of the sum of all
            state[f"{prefix}mlp.experts.down_proj"][expert] = CHOSEN * down[:, own]
    mixture.load_state_dict(state)
    return mixture


def main() -> None:
    """Make the model."""
    parser = argparse.ArgumentParser(prog="python -m reports.mixture.subject", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--minutes", type=float, default=10.0)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    torch.manual_seed(0)
    tokenizer = Tokenizer.from_file(str(_HOME / "tokenizer.json"))
    texts = corpus.documents(corpus.collect_modules(), corpus.Split.TRAIN)
    stream = encode_documents(tokenizer, texts, 0)
    model = upcycled(load_model(str(_HOME)), stream[:512].view(2, 256))
    stored = Qwen3MoeForCausalLM(model.config).half()
    # one linear per expert trains ten times faster on a processor
    split_experts(model, model.config, architecture_of("qwen3_moe"))
    model.requires_grad_(requires_grad=True)
    fit(model, stream, Recipe(400, options.minutes, 0, batch=4, sequence=128, peak_lr=1e-3, warmup=0.05, bf16=False))
    stored.load_state_dict(stacked_state(model.half()) or {})
    artifacts.write_model(options.folder, stored, tokenizer)


if __name__ == "__main__":
    main()
