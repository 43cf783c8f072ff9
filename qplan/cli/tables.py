"""Results as tables in the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.table import Table

from qplan.cli.view import table_view
from qplan.cost.kv_cache import KvMode
from qplan.cost.work import spell_time
from qplan.formats import QuantFormat
from qplan.report import notation
from qplan.run.kv_cache import PlannedCache
from qplan.run.plan import Plan
from qplan.run.table import SensitivityTable
from qplan.run.verification import BuiltModel, Speed, Verification
from qplan.tensors import short_name

if TYPE_CHECKING:
    from qplan.jobs.outlook import Outlook

_ROWS, _MB = 12, 1e6


def sensitivity_table(table: SensitivityTable) -> Table:
    """The tensors that lose most, nats per token, one column per width: in blocks of 64 if those were measured."""
    shown: dict[int, str] = {}
    for fmt in map(QuantFormat.parse, table.conditions.formats):
        if fmt.bits not in shown or fmt.block == 64:
            shown[fmt.bits] = fmt.name
    losses = table.losses()
    worst = sorted(table.model.tensors, key=lambda spec: -max(loss.kl_nats for loss in losses[spec.name].values()))
    title = f"Most sensitive of {len(worst)} tensors: KL to FP32, nats per token, memory {table.goal}"
    # seven widths fit into 80 columns
    view = table_view(("layer, tensor", *shown.values()), left=("layer, tensor",), heading=title)
    for spec in worst[:_ROWS]:
        stored = [QuantFormat.parse(fmt).resolve(spec.in_features).name for fmt in shown.values()]
        cells = [f"{losses[spec.name][fmt].kl_nats:.1e}" if fmt in losses[spec.name] else "-" for fmt in stored]
        view.add_row(short_name(spec.name), *cells)
    return view


def forecast_table(outlook: Outlook) -> Table:
    """What each stage is expected to take, and what this machine has."""
    expected, machine = outlook.expected, outlook.machine
    view = table_view(
        ("stage", "time", "memory, GB", "written, GB"),
        left=("stage",),
        heading="Expected on this machine",
        note=f"{machine.processors} processors, {machine.flops / 1e9:.0f} GFLOP/s in float32 and "
        f"{machine.bf16_flops / 1e9:.0f} in bfloat16; free: {machine.memory_bytes / 1e9:.1f} GB of memory, "
        f"{machine.disk_bytes / 1e9:.0f} GB on the disk",
    )
    for stage in expected.stages:
        view.add_row(
            stage.name, spell_time(stage.seconds), f"{stage.memory_bytes / 1e9:.1f}", f"{stage.disk_bytes / 1e9:.2f}"
        )
    view.add_row(
        "all", spell_time(expected.seconds), f"{expected.memory_bytes / 1e9:.1f}", f"{expected.disk_bytes / 1e9:.2f}"
    )
    return view


def plan_table(plan: Plan) -> Table:
    """How many tensors and weights got which format."""
    title = f"Plan for {plan.budget}: {plan.files.total:,} bytes, {plan.mean_bits:.2f} bits on average"
    view = table_view(("format", "tensors", "weights", "bytes"), left=("format",), heading=title, gap=3)
    for fmt in sorted({t.format for t in plan.tensors}, reverse=True):
        members = [t for t in plan.tensors if t.format == fmt]
        view.add_row(
            fmt.name, str(len(members)), f"{sum(t.weights for t in members):,}", f"{sum(t.bytes for t in members):,}"
        )
    return view


def cache_line(cache: PlannedCache) -> str:
    """How the KV cache is stored, what it takes and loses."""
    loss = "" if cache.loss is None else f", loses {notation.loss(cache.nats)} nats by itself"
    floats = "" if cache.mode is KvMode.FLOAT else f" ({cache.float_bytes / _MB:,.1f} MB in float)"
    return f"KV cache of {cache.tokens:,} tokens in {cache.mode}: {cache.bytes / _MB:,.1f} MB{floats}{loss}"


def verification_table(verification: Verification) -> Table:
    """What every built model did on the engine."""
    others = any(model.other_speed is not None for model in verification.models)
    view = table_view(
        ("model", "MB", "KL low", "normal", "decode", "top-1", "perpl.", "prefill", "decode"),
        left=("model",),
        heading="On the engine: KL to FP32 in nats per token, speeds in tokens/s",
        note="KL low: memory low, one pass; normal: memory normal; decode: low, token by token.\n"
        + ("option: the same model with another dynamic_option.\n" if others else "")
        + f"Text: {verification.text}; FP32 perplexity {notation.perplexity(verification.reference_perplexity)}",
        gap=1,
    )
    for model in verification.models:
        view.add_row(model.name, f"{model.files.total / 1e6:,.2f}", *_cells(model, model.dynamic_option, model.speed))
        if model.other_speed is not None:
            other = model.other_speed.dynamic_option
            view.add_row(f" option {other}", "", *_cells(model, other, model.other_speed))
    return view


def _cells(model: BuiltModel, option: int, speed: Speed | None) -> list[str]:
    """Losses, agreement and speeds of a model with one of MNN's ``dynamic_option``."""
    low, decode = (model.accuracy("low", path, option) for path in ("prefill", "decode"))
    normal = model.accuracy("normal") if option == model.dynamic_option else None
    return [
        *(f"{a.kl_nats:.2e}" if a else "-" for a in (low, normal, decode)),
        f"{low.top1:.4f}" if low else "-",
        notation.perplexity(low.perplexity) if low else "-",
        f"{speed.prefill_tokens_per_s:,.0f}" if speed else "-",
        f"{speed.decode_tokens_per_s:,.0f}" if speed else "-",
    ]
