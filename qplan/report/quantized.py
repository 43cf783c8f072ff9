"""What came of a quantization, beside a uniform export: the few lines that decide whether to use it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from qplan.cost.target import DEFAULT_TARGET
from qplan.report import notation
from qplan.report.felt import predicted_time_against
from qplan.report.summary import Contender, baseline, contenders
from qplan.run.plan import Plan
from qplan.run.verification import Accuracy, Speed, Verification


@dataclass(frozen=True)
class QuantizedRows:
    """A line for each thing that is felt, of the plan and of the uniform export that it is to be seen beside."""

    heading: str
    head: tuple[str, ...]
    """Names of the columns; the first, of what a line is about, is empty."""
    rows: tuple[tuple[str, ...], ...]
    note: str
    """How to read it."""

    @classmethod
    def of(cls, plan: Plan, verification: Verification | None) -> QuantizedRows:
        """Collect them."""
        models = contenders(plan, verification)
        base = baseline(plan, models)
        shown = [models[0], *([] if base is None else [base])]
        rows = [
            ("files, MB", *(f"{model.total_bytes / 1e6:,.2f}" for model in shown)),
            ("RAM after loading, MB", *_speeds(shown, lambda speed: f"{speed.ram_bytes / 1e6:,.1f}")),
            ("decode, tokens/s", *_speeds(shown, lambda speed: notation.speed(speed.decode_tokens_per_s))),
            ("prefill, tokens/s", *_speeds(shown, lambda speed: notation.speed(speed.prefill_tokens_per_s))),
            ("KL to FP32", *(notation.loss(model.loss_nats) for model in shown)),
            ("KL, 99th percentile", *_accuracies(shown, lambda found: notation.loss(found.kl_p99_nats))),
            ("top-1 agreement", *_accuracies(shown, lambda found: notation.percent(found.top1))),
            ("perplexity", *_accuracies(shown, lambda found: notation.perplexity(found.perplexity))),
        ]
        if base is not None and plan.target != DEFAULT_TARGET:
            rows += _on_target(plan, base)
        speed = shown[0].speed
        threads = "" if speed is None else f" with {notation.threads(speed.threads)}"
        note = f"Measured on this machine's engine{threads}; KL in nats per token"
        if verification is not None:
            note += f"\nPerplexity of FP32: {notation.perplexity(verification.reference_perplexity)}"
        head = ("", "plan", *([] if base is None else [f"uniform {base.name}"]))
        return cls(f"{notation.place(plan.model)} at {plan.budget}", head, tuple(rows), note)


def _on_target(plan: Plan, base: Contender) -> list[tuple[str, ...]]:
    """Times on the target, where that is not this machine."""
    if plan.footprint is None or base.footprint is None:
        return []
    return [
        (
            f"{phase} time on {plan.target}, predicted",
            predicted_time_against(plan.footprint, base.footprint, phase),
            f"1.00{notation.TIMES}",
        )
        for phase in ("decode", "prefill")
    ]


def _speeds(models: Sequence[Contender], told: Callable[[Speed], str]) -> list[str]:
    return [notation.MISSING if model.speed is None else told(model.speed) for model in models]


def _accuracies(models: Sequence[Contender], told: Callable[[Accuracy], str]) -> list[str]:
    found = [None if model.built is None else model.built.accuracy(model.memory) for model in models]
    return [notation.MISSING if accuracy is None else told(accuracy) for accuracy in found]
