"""Results as tables in the terminal."""

from __future__ import annotations

from rich.table import Table

from qplan.planner.plan import Plan
from qplan.sensitivity.table import SensitivityTable
from qplan.verify.record import Verification

_ROWS = 12


def sensitivity_table(table: SensitivityTable) -> Table:
    """The tensors that lose most, by format; losses in nats per token."""
    losses = table.losses()
    formats = list(dict.fromkeys(fmt for row in losses.values() for fmt in row))
    worst = sorted(losses, key=lambda name: -max(loss.kl_nats for loss in losses[name].values()))
    view = Table(title=f"Most sensitive of {len(losses)} tensors: KL to FP32, nats per token, memory {table.goal}")
    view.add_column("tensor")
    for fmt in formats:
        view.add_column(fmt, justify="right")
    for name in worst[:_ROWS]:
        cells = [f"{losses[name][fmt].kl_nats:.1e}" if fmt in losses[name] else "-" for fmt in formats]
        view.add_row(name, *cells)
    return view


def plan_table(plan: Plan) -> Table:
    """How many tensors and weights got which format."""
    view = Table(title=f"Plan for {plan.budget}: {plan.files.total:,} bytes, {plan.mean_bits:.2f} bits on average")
    for column in ("format", "tensors", "weights", "bytes"):
        view.add_column(column, justify="left" if column == "format" else "right")
    for fmt in sorted({t.format for t in plan.tensors}, reverse=True):
        members = [t for t in plan.tensors if t.format == fmt]
        view.add_row(
            fmt.name, str(len(members)), f"{sum(t.weights for t in members):,}", f"{sum(t.bytes for t in members):,}"
        )
    return view


def verification_table(verification: Verification) -> Table:
    """What every built model did on the engine."""
    view = Table(title=f"On the engine, {verification.text}; FP32 perplexity {verification.reference_perplexity:.2f}")
    columns = ("model", "bytes", "KL low", "KL normal", "KL decode", "top-1", "perplexity", "prefill t/s", "decode t/s")
    for column in columns:
        view.add_column(column, justify="left" if column == "model" else "right")
    for model in verification.models:
        low, normal, decode = (
            model.accuracy(memory, path)
            for memory, path in (("low", "prefill"), ("normal", "prefill"), ("low", "decode"))
        )
        view.add_row(
            model.name,
            f"{model.files.total:,}",
            *(f"{a.kl_nats:.2e}" if a else "-" for a in (low, normal, decode)),
            f"{low.top1:.4f}" if low else "-",
            f"{low.perplexity:.2f}" if low else "-",
            f"{model.speed.prefill_tokens_per_s:,.0f}" if model.speed else "-",
            f"{model.speed.decode_tokens_per_s:,.0f}" if model.speed else "-",
        )
    return view
