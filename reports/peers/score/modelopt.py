"""NVIDIA ModelOpt's ``auto_quantize``: scores and solver as they are, choosing from INT4 and INT8 in blocks of 64."""

from __future__ import annotations

from typing import Any

import modelopt.torch.quantization as mtq
from modelopt.torch.quantization.algorithms import AutoQuantizeSearcher
from torch import Tensor

from reports.peers.score.hugging_face import Subject
from reports.peers.score.job import Answer, Job, mean_bits, parse, versions
from reports.peers.score.meter import spent_on


def weight_only(bits: int) -> dict[str, Any]:
    """A format of their library: symmetric integers with one scale per 64 weights, activations as they are."""
    return {
        "quant_cfg": [
            {"quantizer_name": "*", "enable": False},
            {"quantizer_name": "*weight_quantizer", "cfg": {"num_bits": bits, "block_sizes": {-1: 64}}},
            {"quantizer_name": "*input_quantizer", "enable": False},
        ],
        "algorithm": "max",
    }


def search(subject: Subject, job: Job, method: str) -> Any:  # noqa: ANN401 - their search state
    """Score and plan for the first budget."""

    def forward(model: Any, batch: Tensor) -> Any:  # noqa: ANN401 - their models
        output = model(input_ids=batch, labels=batch, use_cache=False)
        return output.logits if method == "kl_div" else output

    _, state = mtq.auto_quantize(
        subject.model,
        constraints={"effective_bits": job.budgets[0]},
        # no tensor stays unquantized: every plan has 4 and 8 bits alone
        module_search_spaces=[
            {
                "module_name_patterns": ["*.layers.*"],
                "quantization_formats": [weight_only(4), weight_only(8)],
                "allow_no_quant": False,
            }
        ],
        quantization_formats=[weight_only(4), weight_only(8)],
        data_loader=list(subject.batches),
        forward_step=forward,
        loss_func=None if method == "kl_div" else lambda output, _batch: output.loss,
        disabled_layers=["*lm_head*"],
        num_calib_steps=len(subject.batches),
        num_score_steps=len(subject.batches),
        method=method,
    )
    return state


def widths(config: Any) -> dict[str, int]:  # noqa: ANN401 - their configuration
    """Bits by tensor of a plan."""
    suffix = ".weight_quantizer"
    return {
        entry["quantizer_name"].removesuffix(suffix): entry["cfg"]["num_bits"]
        for entry in config["quant_cfg"]
        if entry["quantizer_name"].endswith(suffix) and "*" not in entry["quantizer_name"] and entry.get("enable", True)
    }


def main() -> None:
    """Answer one job."""
    job, path = parse()
    method, _, groups = job.variant.partition(" ")
    if groups != "fused":
        # q, k, v and gate, up may differ: MNN has no kernel that needs them equal
        AutoQuantizeSearcher.quant_grouping_rules = []
    subject = Subject.load(job)
    weights, forward_s = subject.linears, subject.forward_s()
    head = subject.model.get_output_embeddings().weight.numel()
    # their constraint counts the unplanned head at 16 bits
    total = sum(weights.values())
    bits = {b: (b * total + 16 * head) / (total + head) for b in job.budgets}
    job = Job(job.model, job.tokens, tuple(bits.values()), job.batch_size, job.variant)
    state, spent = spent_on(lambda: search(subject, job, method))
    plans = {}
    for budget, effective in bits.items():
        plans[str(budget)] = widths(mtq.get_auto_quantize_config(state, {"effective_bits": effective}))
        print(f"{budget} bits: {mean_bits(plans[str(budget)], weights):.3f}")
    method = f"auto_quantize(method={method!r})" + (", its fused groups" if groups else ", tensors ungrouped")
    Answer(versions("nvidia-modelopt", "torch", "transformers"), method, forward_s, spent, plans).write(path)


if __name__ == "__main__":
    main()
