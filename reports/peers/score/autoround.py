"""Intel AutoRound's ``AutoScheme``: its scores and its exact solver, choosing from 4 and 8 bits in groups of 64."""

from __future__ import annotations

import os
import tempfile
from dataclasses import replace
from typing import Any

from transformers import AutoTokenizer

from reports.peers.score.hugging_face import Subject
from reports.peers.score.job import Answer, Job, mean_bits, parse, versions
from reports.peers.score.meter import spent_on


def search(subject: Subject, job: Job, weights: dict[str, int]) -> dict[float, dict[str, Any]]:
    """Score and plan for all budgets; it scores again for each."""
    # imported late: it reads from the environment where to cache scores, and knows a model by its folder's name alone
    from auto_round.auto_scheme import AutoScheme, delta_loss  # noqa: PLC0415
    from auto_round.auto_scheme.gen_auto_scheme import GenScheme  # noqa: PLC0415
    from auto_round.schemes import preset_name_to_scheme  # noqa: PLC0415

    # the same tokens as all peers; by itself it would fetch and tokenize another text
    delta_loss.get_dataloader = lambda *_args, **_kwargs: [
        {"input_ids": batch, "attention_mask": batch.new_ones(batch.shape)} for batch in subject.batches
    ]
    options = [replace(preset_name_to_scheme(name), group_size=64) for name in ("W4A16", "W8A16")]
    scheme = AutoScheme(
        avg_bits=list(job.budgets),
        options=options,
        ignore_scale_zp_bits=True,
        nsamples=len(job.ids),
        seqlen=job.ids.shape[1],
        batch_size=job.batch_size,
    )
    tokenizer = AutoTokenizer.from_pretrained(job.model)
    found: dict[float, dict[str, Any]] = GenScheme(
        scheme, subject.model, list(weights), {}, tokenizer=tokenizer, device_map="cpu", enable_torch_compile=False
    ).get_layer_config()
    return found


def main() -> None:
    """Answer one job."""
    job, path = parse()
    subject = Subject.load(job)
    weights, forward_s = subject.linears, subject.forward_s()
    with tempfile.TemporaryDirectory() as cache:
        os.environ["AR_AUTO_SCHEME_CACHE"] = cache
        first = Job(job.model, job.tokens, job.budgets[:1], job.batch_size, job.variant)
        _, spent = spent_on(lambda: search(subject, first, weights))
        # its cache holds the scores by now
        configs = search(Subject.load(job), job, weights)
    plans = {}
    for budget, config in configs.items():
        plan = {name: int(layer["bits"]) for name, layer in config.items() if name in weights}
        plans[str(budget)] = plan
        print(f"{budget} bits: {mean_bits(plan, weights):.3f}")
    Answer(
        versions("auto-round", "torch", "transformers"), "AutoScheme, method 'default'", forward_s, spent, plans
    ).write(path)


if __name__ == "__main__":
    main()
