"""What came of a quantization, beside a uniform export: the few lines that decide whether to use it."""

from __future__ import annotations

from collections.abc import Callable

from qplan.cli.view import View, table_view
from qplan.cost.target import DEFAULT_TARGET
from qplan.report import notation
from qplan.report.felt import predicted_time_against
from qplan.report.summary import Contender, baseline, contenders
from qplan.run.plan import Plan
from qplan.run.verification import Accuracy, Speed, Verification


def quantized_table(plan: Plan, verification: Verification | None) -> View:
    """A line for each thing that is felt, of the plan and of the uniform export that it is to be seen beside."""
    models = contenders(plan, verification)
    base = baseline(plan, models)
    shown = [models[0], *([] if base is None else [base])]
    names = ["plan", *([] if base is None else [f"uniform {base.name}"])]
    note = "Measured on this machine's engine; KL in nats per token"
    if verification is not None:
        note += f"; perplexity of FP32 {notation.perplexity(verification.reference_perplexity)}"
    view = table_view(("", *names), left=("",), heading=f"{notation.place(plan.model)} at {plan.budget}", note=note)
    view.add_row("files, MB", *(f"{model.total_bytes / 1e6:,.2f}" for model in shown))
    view.add_row("RAM after loading, MB", *_speeds(shown, lambda speed: f"{speed.ram_bytes / 1e6:,.1f}"))
    view.add_row("decode, tokens/s", *_speeds(shown, lambda speed: notation.speed(speed.decode_tokens_per_s)))
    view.add_row("prefill, tokens/s", *_speeds(shown, lambda speed: notation.speed(speed.prefill_tokens_per_s)))
    view.add_row("KL to FP32", *(notation.loss(model.loss_nats) for model in shown))
    view.add_row("KL, 99th percentile", *_accuracies(shown, lambda found: notation.loss(found.kl_p99_nats)))
    view.add_row("top-1 agreement", *_accuracies(shown, lambda found: notation.percent(found.top1)))
    view.add_row("perplexity", *_accuracies(shown, lambda found: notation.perplexity(found.perplexity)))
    if plan.target != DEFAULT_TARGET and base is not None and plan.footprint is not None and base.footprint is not None:
        for phase in ("decode", "prefill"):
            share = predicted_time_against(plan.footprint, base.footprint, phase)
            view.add_row(f"{phase} time on {plan.target}, predicted", share, f"1.00{notation.TIMES}")
    return view


def _speeds(models: list[Contender], told: Callable[[Speed], str]) -> list[str]:
    return [notation.MISSING if model.speed is None else told(model.speed) for model in models]


def _accuracies(models: list[Contender], told: Callable[[Accuracy], str]) -> list[str]:
    found = [None if model.built is None else model.built.accuracy(model.memory) for model in models]
    return [notation.MISSING if accuracy is None else told(accuracy) for accuracy in found]
