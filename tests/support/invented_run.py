"""Made-up runs with the shape of real ones: int8 limited by its activations, outliers, a tied head."""

from __future__ import annotations

import functools
import math
import random
from dataclasses import dataclass

from qplan.card import ModelCard
from qplan.cost.file_bytes import FileBytes, FixedBytes
from qplan.formats import QuantFormat
from qplan.notes import note
from qplan.planner.frontier import frontier
from qplan.run.frontier import Frontier
from qplan.run.measurement import Measurement
from qplan.run.plan import LogitsRule, Plan, PlannedTensor, SolverReport, UniformPoint
from qplan.run.samples import Sample, Samples
from qplan.run.table import Conditions, SensitivityTable
from qplan.run.verification import Accuracy, ArmRun, BuiltModel, Check, EngineRun, Speed, Verification
from qplan.settings import memories_of
from qplan.tensors import Role, TensorSpec

FALL = {2: 60.0, 3: 6.0, 4: 1.0, 5: 0.25, 6: 0.09, 8: 0.04, 16: 2e-5}
"""Loss of a width relative to int4."""

SPECIMEN = "model.layers.1.mlp.down_proj"
"""The tensor whose weights, integers and moments a saved run holds."""


@dataclass(frozen=True)
class Run:
    table: SensitivityTable
    plan: Plan
    verification: Verification


def qwen_tensors(
    layers: int, hidden: int, kv: int, mlp: int, vocabulary: int, *, tied: bool = True
) -> tuple[TensorSpec, ...]:
    shapes = {
        "self_attn.q_proj": (hidden, hidden, True),
        "self_attn.k_proj": (kv, hidden, True),
        "self_attn.v_proj": (kv, hidden, True),
        "self_attn.o_proj": (hidden, hidden, False),
        "mlp.gate_proj": (mlp, hidden, False),
        "mlp.up_proj": (mlp, hidden, False),
        "mlp.down_proj": (hidden, mlp, False),
    }
    specs = []
    for layer in range(layers):
        for path, (rows, columns, bias) in shapes.items():
            block, kind = path.split(".")
            role = Role.ATTENTION if block == "self_attn" else Role.MLP
            name, op = f"model.layers.{layer}.{path}", f"/layers.{layer}/{block}/{kind}/Linear"
            specs.append(TensorSpec(name, op, layer, kind, role, rows, columns, bias))
    head = TensorSpec(
        "lm_head", "/lm/lm_head/Linear", None, "lm_head", Role.HEAD, vocabulary, hidden, bias=False, tied=tied
    )
    return (*specs, head)


def untied_embedding(hidden: int, vocabulary: int) -> TensorSpec:
    name, kind = "model.embed_tokens", "embed_tokens"
    return TensorSpec(name, "", None, kind, Role.EMBEDDING, vocabulary, hidden, bias=False)


def sensitivity(
    specs: tuple[TensorSpec, ...], formats: tuple[str, ...], batches: int = 4, embedding: TensorSpec | None = None
) -> SensitivityTable:
    rng = random.Random(7)
    layers = 1 + max((s.layer for s in specs if s.layer is not None), default=0)
    boost = {"down_proj": 5.0, "v_proj": 2.2, "o_proj": 1.4, "k_proj": 0.5, "lm_head": 12.0, "embed_tokens": 40.0}
    measurements = []
    for spec in specs if embedding is None else (embedding, *specs):
        ends = 1.0 if spec.layer is None else 1 + 4 * math.exp(-spec.layer) + 2 * math.exp(spec.layer - layers + 1)
        base = 4e-4 * boost.get(spec.kind, 1.0) * ends * rng.lognormvariate(0, 0.5) / layers
        for name in formats:
            fmt = spec.resolve(QuantFormat.parse(name))
            if not spec.allows(fmt):
                continue
            kl = base * FALL[fmt.bits] * rng.lognormvariate(0, 0.2)
            for batch in range(batches):
                under_low = kl * rng.lognormvariate(0, 0.15)
                sqnr = math.inf if fmt.bits == 16 and spec.kind == "k_proj" else 6.02 * min(fmt.bits, 12) - 3
                for memory in memories_of("low"):
                    here = under_low * (1 if memory == "low" or fmt.is_float else 0.3)
                    measurements.append(
                        Measurement(
                            *(spec.name, fmt.name, memory, batch, 2048),
                            kl_nats=here,
                            kl_p99_nats=9 * here,
                            top1=max(0.0, 1 - math.sqrt(here)),
                            nll_nats=2.9 + here,
                            sqnr_db=sqnr,
                        )
                    )
    weights = sum(s.weights for s in specs)
    card = ModelCard(
        "../shared/models/qwen2-8m",
        "ab" * 32,
        "Qwen2ForCausalLM",
        "qwen2",
        weights,
        4096,
        1024,
        specs,
        0,
        3000,
        embedding,
    )
    conditions = Conditions("low", formats, 32, 256, 8, "WikiText-2 valid, 32 x 256 tokens", "cd" * 32, 0)
    notes = (note("tied-head-unmeasured", tensor="lm_head", formats=["int2", "int3"], bits=[4, 8, 16]),)
    return SensitivityTable(card, conditions, 2.9131, notes, tuple(measurements))


def plan_of(table: SensitivityTable, budget: str = "int8") -> Plan:
    """Wide formats for what loses most per byte, narrow ones for the rest; about the size of uniform INT8."""
    losses, specs = table.losses(), {s.name: s for s in table.model.planned}
    bodies = [s for s in table.model.tensors if s.role is not Role.HEAD]
    bodies.sort(key=lambda s: losses[s.name][QuantFormat.parse("int4").resolve(s.in_features).name].kl_nats / s.weights)
    low, middle, high = {"int8": ("int6", "int8", "fp16"), "int4": ("int3", "int4", "int8")}[budget]
    low = low if low in table.conditions.formats else middle
    places = {s.name: i / len(bodies) for i, s in enumerate(bodies)}
    chosen = {name: low if place < 0.35 else middle if place < 0.8 else high for name, place in places.items()}
    chosen |= {s.name: "int8" for s in specs.values() if s.name not in places}
    formats = {s: specs[s].resolve(QuantFormat.parse(f)) for s, f in chosen.items()}
    planned = tuple(
        PlannedTensor(
            name=s.name,
            op_name=s.op_name,
            layer=s.layer,
            kind=s.kind,
            weights=s.weights,
            format=formats[s.name],
            bytes=s.bytes_in(formats[s.name]),
            loss_nats=losses[s.name][formats[s.name].name].kl_nats,
        )
        for s in table.model.planned
    )
    predicted = sum(t.loss_nats for t in planned)
    files = FileBytes(sum(t.bytes for t in planned), 0, 41_200)
    uniform = tuple(_uniform(table, name) for name in ("fp16", "int8", "int4"))
    return Plan(
        table.model.source,
        table.model.sha256,
        table.sha256,
        "low",
        budget,
        next(u.total_bytes for u in uniform if u.name == budget),
        planned,
        predicted,
        files,
        SolverReport(
            status="optimal",
            objective_nats=predicted,
            bound_nats=predicted,
            gap=0.0,
            choices=sum(map(len, losses.values())),
            seconds=0.21,
        ),
        LogitsRule(8, at_least_mean=True, price_nats=0.04 * predicted, head_format_without="int6"),
        uniform,
        (),
    )


def _uniform(table: SensitivityTable, name: str) -> UniformPoint:
    total, predicted, losses = 41_200, 0.0, table.losses()
    for spec in table.model.planned:
        wanted = "int8" if spec.role is Role.HEAD and name == "int4" else "fp16" if spec.is_embedding else name
        fmt = spec.resolve(QuantFormat.parse(wanted))
        total += spec.bytes_in(fmt)
        predicted += losses[spec.name][fmt.name].kl_nats
    return UniformPoint(name, total, predicted)


def verification_of(plan: Plan, *, failing: bool = False) -> Verification:
    rng = random.Random(3)
    contenders = [("plan", plan.files.total, plan.predicted_nats)]
    contenders += [(u.name, u.total_bytes, u.predicted_nats or 0.0) for u in plan.uniform]
    models = []
    for name, total, predicted in contenders:
        runs, emulated = [], {}
        for memory, factor in (("low", 1.0), ("normal", 0.35)):
            kl = predicted * factor * rng.uniform(0.9, 1.15)
            emulated[memory] = kl * rng.uniform(0.98, 1.02)
            for path in ("prefill", "decode"):
                here = kl * rng.uniform(0.99, 1.01)
                accuracy = Accuracy(here, 9 * here, 1 - 0.9 * math.sqrt(here), 18.43 * math.exp(here), 16_384)
                runs.append(EngineRun(memory, path, accuracy))
        rate = 9.1e9 / (total + 6e6)
        speed = Speed("low", 2, 256, 5.1 * rate, rate, int(1.31 * total + 9e6))
        models.append(BuiltModel(name, FileBytes(total - 41_200, 0, 41_200), tuple(runs), speed, emulated))
    bytes_of_both = {"plan_bytes": 3_912_442, "uniform_bytes": 3_934_106}
    promises = (
        (note("fits-budget"), note("bytes-of-budget", total_bytes=3_912_442, budget_bytes=3_934_106, budget="int8")),
        (
            note("not-worse", uniform="int8", memory="low"),
            note("plan-against-uniform", plan_nats=5.1e-4, uniform_nats=8.3e-4, **bytes_of_both),
        ),
        (
            note("not-worse", uniform="int8", memory="normal"),
            note("plan-against-uniform", plan_nats=1.9e-4, uniform_nats=2.6e-4, **bytes_of_both),
        ),
        (
            note("emulation", uniform="int8", memory="normal"),
            note("losses-apart", torch_nats=2.6e-4, engine_nats=2.56e-4, difference=0.016, limit=0.05),
        ),
        (
            note("plan-logits"),
            note("relative-error-of-tokens", error=3.1e-6, limit=1e-5, memory="normal", tokens=64),
        ),
        (note("read-back"), note("ops-right", right=57, count=57)),
        (note("predicted-bytes"), note("bytes-of-predicted", actual_bytes=3_871_242, predicted_bytes=3_871_242)),
    )
    checks = tuple(
        Check(promise, not failing or promise.values.get("memory") != "low", found) for promise, found in promises
    )
    text = note("held-out-windows", source="WikiText-2 test, 64 x 256 tokens")
    arm = tuple(
        ArmRun(name, precision, path, Accuracy(4e-4, 3e-3, 0.98, 18.5, 512), 3.8e-4, predicted)
        for name, predicted in (("arm-v8", 4.1e-4), ("arm-i8mm", None))
        for precision in ("low", "high")
        for path in ("prefill", "decode")
    )
    missing = (note("arm-not-proved", target="phone"),)
    return Verification(
        plan.model_sha256,
        "ef" * 32,
        text,
        "12" * 32,
        18.42,
        tuple(models),
        checks,
        arm,
        missing,
        samples=Samples(
            prompts=12,
            prompt_tokens=8,
            new_tokens=6,
            same={"int8": 4, "plan": 9},
            shown=(
                Sample(
                    "The castle was <built> by",
                    {"fp32": " the king in 1204", "int8": " the queen", "plan": " the king in 1240"},
                ),
                Sample("In 1999, the", {"fp32": " album was", "int8": " album was", "plan": " album was"}),
            ),
        ),
    )


def make_run(
    layers: int,
    formats: tuple[str, ...] = ("fp16", "int8", "int6", "int4"),
    budget: str = "int8",
    hidden: int = 256,
    *,
    tied: bool = True,
) -> Run:
    specs = qwen_tensors(layers, hidden, hidden // 4, 3 * hidden, 4096, tied=tied)
    table = sensitivity(specs, formats, embedding=None if tied else untied_embedding(hidden, 4096))
    plan = plan_of(table, budget)
    return Run(table, plan, verification_of(plan))


@functools.cache
def small_run() -> Run:
    """Eight layers, four formats, as large as uniform INT8."""
    return make_run(8)


@functools.cache
def untied_run() -> Run:
    """Two layers, four formats, and an embedding in a file of its own."""
    return make_run(2, tied=False)


@functools.cache
def deep_run() -> Run:
    """Eighty layers, six formats, as large as uniform INT4."""
    return make_run(80, ("fp16", "int8", "int6", "int4", "int3", "int2"), "int4")


def sweep_of(run: Run, points: int) -> Frontier:
    """Plans at other budgets of the same table."""
    return frontier(run.table, FixedBytes(0, 0, 41_200, exact=True), points=points)


@functools.cache
def swept_run() -> Frontier:
    """The frontier of `small_run`: eight plans."""
    return sweep_of(small_run(), 8)
