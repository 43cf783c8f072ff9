"""Results as tables in the terminal."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.table import Table

from qplan.cli.view import View, table_view
from qplan.cost.kv_cache import KvMode
from qplan.cost.work import spell_time
from qplan.formats import QuantFormat
from qplan.report import notation
from qplan.report.arm import arm_rows
from qplan.report.felt import time_against
from qplan.report.quantized import QuantizedRows
from qplan.report.summary import Contender, baseline, contenders
from qplan.run.kv_cache import PlannedCache
from qplan.run.plan import Plan
from qplan.run.speeds import Phase
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
    worst = sorted(table.model.planned, key=lambda spec: -max(loss.kl_nats for loss in losses[spec.name].values()))
    title = f"Most sensitive of {len(worst)} tensors: KL to FP32, nats per token, memory {table.goal}"
    # seven widths fit into 80 columns
    view = table_view(("layer, tensor", *shown.values()), left=("layer, tensor",), heading=title)
    for spec in worst[:_ROWS]:
        stored = [spec.resolve(QuantFormat.parse(fmt)).name for fmt in shown.values()]
        cells = [notation.loss(losses[spec.name][fmt].kl_nats) if fmt in losses[spec.name] else "-" for fmt in stored]
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


def felt_table(plan: Plan, verification: Verification) -> Table:
    """Files, RAM, decode and prefill of the plan and of uniform models, as measured."""
    models = contenders(plan, verification)
    base = baseline(plan, models)
    name = "-" if base is None else base.label
    view = table_view(
        ("model", "files, MB", "RAM, MB", "predicted", *_TIMES),
        left=("model",),
        heading=f"What is felt; times over those of {name}",
        note="RAM: growth of resident memory by loading the model; predicted: of the weights alone.\n" + _TIMED,
        gap=1,
    )
    for model in models:
        ram = None if model.speed is None else model.speed.ram_bytes
        predicted = None if model.footprint is None else model.footprint.ram_bytes
        sizes = [f"{size / 1e6:,.2f}" if size else "-" for size in (model.total_bytes, ram, predicted)]
        times = [_time(model, base, phase) for phase in PHASES]
        view.add_row(model.name, *sizes, *times, style="bold" if model.is_plan else "")
    return view


PHASES: tuple[Phase, Phase] = ("decode", "prefill")
_TIMED = "Times: median of rounds by turns, and their spread; without one: another time,\nunder another load."
_TIMES = tuple(f"{phase} time" for phase in PHASES)


def _time(model: Contender, base: Contender | None, phase: Phase) -> str:
    if base is None or model.speed is None or base.speed is None:
        return "-"
    return time_against(model.speed, base.speed, phase)


def limits_lines(plan: Plan) -> Iterator[str]:
    """What a plan uses of each limit."""
    for limit in plan.limits:
        of = f", uniform {limit.of}'s" if limit.of else ""
        yield f"{limit.name}: {limit.predicted:.4g} of {limit.limit:.4g} {limit.unit}{of}"


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
    view.columns[0].no_wrap, view.columns[0].overflow = False, "fold"  # numbers are cut last
    for model in verification.models:
        view.add_row(model.name, f"{model.files.total / 1e6:,.2f}", *_cells(model, model.dynamic_option, model.speed))
        if model.other_speed is not None:
            other = model.other_speed.dynamic_option
            view.add_row(f" option {other}", "", *_cells(model, other, model.other_speed))
    return view


def arm_table(verification: Verification) -> Table:
    """What the built plan did on emulated ARM processors."""
    view = table_view(
        ("processor", "precision", "prefill", "predicted", "here", "top-1", "decode", "predicted", "here"),
        left=("processor", "precision"),
        heading="On MNN's ARM engine, emulated: KL to FP32 in nats per token",
        note="here: the same tokens on this machine's engine; predicted: in torch with the processor's arithmetic.",
        gap=1,
    )
    for row in arm_rows(verification.arm):
        shown = (row.prefill, row.prefill_predicted, row.prefill_here, row.top1)
        view.add_row(row.processor, row.precision, *shown, row.decode, row.decode_predicted, row.decode_here)
    return view


def rivals_table(plan: Plan, verification: Verification | None) -> Table:
    """The best uniform models within the plan's limits: what they lose, and what makes the best one."""
    view = table_view(
        ("uniform model", "MB", "in torch", "on the engine"),
        left=("uniform model",),
        heading="The best uniform models within the same limits: KL to FP32",
        note=f"{plan.rivals[0].name}: {plan.rivals[0].command}",
    )
    for rival in plan.rivals:
        model = None if verification is None else verification.model(rival.name)
        accuracy = None if model is None else model.accuracy(plan.memory)
        engine = "-" if accuracy is None else f"{accuracy.kl_nats:.2e}"
        view.add_row(rival.name, f"{rival.total_bytes / 1e6:,.2f}", f"{rival.heldout_nats:.2e}", engine)
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


def quantized_table(plan: Plan, verification: Verification | None) -> View:
    """What came of a quantization, beside a uniform export."""
    found = QuantizedRows.of(plan, verification)
    view = table_view(found.head, left=("",), heading=found.heading, note=found.note)
    for row in found.rows:
        view.add_row(*row)
    return view
