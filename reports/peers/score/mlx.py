"""mlx-lm's ``dynamic_quant``: its sensitivities and its threshold, for 4 and 8 bits in groups of 64."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx import nn
from mlx.utils import tree_flatten
from mlx_lm.quant.dynamic_quant import estimate_sensitivities, estimate_threshold
from mlx_lm.utils import load

from reports.peers.score.job import Answer, Job, mean_bits, parse, versions
from reports.peers.score.meter import seconds_of, spent_on

GROUP = {"low_bits": 4, "low_group_size": 64, "high_bits": 8, "high_group_size": 64}
SCALE_BITS = 0.5
"""A scale and a bias of 16 bits for every 64 weights, which its bits per weight count."""


def main() -> None:
    """Answer one job."""
    job, path = parse()
    mx.set_default_device(mx.cpu)
    model, _ = load(job.model)
    ids = mx.array(job.ids)
    weights = {
        name: layer.weight.size
        for name, layer in tree_flatten(model.leaf_modules(), is_leaf=nn.Module.is_module)
        if hasattr(layer, "to_quantized")
    }
    # nothing is compiled on a CPU, and a pass takes long there
    forward_s = seconds_of(
        lambda: mx.eval([model(batch) for batch in mx.split(ids, len(ids) // job.batch_size)]), warm=False
    )

    def score() -> dict[str, float]:
        found = dict(estimate_sensitivities(model, ids, **GROUP, batch_size=job.batch_size))
        if not any(found.values()):
            msg = "every sensitivity is 0"
            raise ValueError(msg)
        threshold(found, job.budgets[0])
        return found

    def threshold(scores: dict[str, float], bits: float) -> float:
        found: float = estimate_threshold(model, scores, target_bpw=bits + SCALE_BITS, **GROUP)
        return found

    scores, spent = spent_on(score)
    plans = {}
    for bits in job.budgets:
        limit = threshold(scores, bits)
        plan = {name: 8 if scores[name] > limit else 4 for name in weights}
        print(f"{bits} bits: {mean_bits(plan, weights):.3f}")
        plans[str(bits)] = {tensor_name(name, job): width for name, width in plan.items()}
    Answer(versions("mlx", "mlx-lm", "transformers"), "dynamic_quant, 4 and 8 bits", forward_s, spent, plans).write(
        path
    )


def tensor_name(name: str, job: Job) -> str:
    """The Hugging Face name of a layer: a tied embedding is the head."""
    config: dict[str, Any] = json.loads((Path(job.model) / "config.json").read_text(encoding="utf-8"))
    return "lm_head" if name.endswith("embed_tokens") and config.get("tie_word_embeddings") else name


if __name__ == "__main__":
    main()
