"""Intel NNCF's mixed precision of ``compress_weights``: a data-aware criterion, sorted, filled up to a ratio."""

from __future__ import annotations

from typing import Any

import nncf
from nncf.quantization.algorithms.weight_compression.algorithm import WeightCompression

from reports.peers.score.hugging_face import Subject
from reports.peers.score.job import Answer, Job, mean_bits, parse, versions
from reports.peers.score.meter import spent_on


def compress(subject: Subject, job: Job, bits: float) -> dict[str, int]:
    """Compress a model to 4 and 8 bits; widths by tensor."""
    chosen: dict[str, int] = {}
    decide = WeightCompression.apply_mixed_precision

    def noting(self: Any, params: Any, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 - their signature
        decide(self, params, *args, **kwargs)
        chosen.update({p.weight_name.removesuffix(".weight"): p.compression_config.num_bits for p in params})

    WeightCompression.apply_mixed_precision = noting
    try:
        nncf.compress_weights(
            subject.model,
            mode=nncf.CompressWeightsMode.INT4_ASYM,
            ratio=(8 - bits) / 4,
            group_size=64,
            dataset=nncf.Dataset([{"input_ids": batch, "use_cache": False} for batch in subject.batches]),
            sensitivity_metric=nncf.SensitivityMetric(job.variant) if job.variant else None,
            subset_size=len(subject.batches),
        )
    finally:
        WeightCompression.apply_mixed_precision = decide
    return chosen


def main() -> None:
    """Answer one job."""
    job, path = parse()
    subject = Subject.load(job)
    weights, forward_s = subject.linears, subject.forward_s()
    first, spent = spent_on(lambda: compress(subject, job, job.budgets[0]))
    plans = {str(job.budgets[0]): first}
    for budget in job.budgets[1:]:
        plans[str(budget)] = compress(Subject.load(job), job, budget)
    for name, plan in plans.items():
        print(f"{name} bits: {mean_bits(plan, weights):.3f}")
    method = f"compress_weights, {job.variant or 'default criterion with a data set'}"
    Answer(versions("nncf", "torch", "transformers"), method, forward_s, spent, plans).write(path)


if __name__ == "__main__":
    main()
