"""What `qplan emit` ships at 3 to 8 bits' worth of uniform bytes, against the uniform export, on the engine."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass

from qplan.choosing.request import PlanRequest
from qplan.jobs.emit import run_emit
from qplan.jobs.emitted import Emitted
from qplan.jobs.options import EmitOptions
from qplan.jobs.skeletons import run_skeleton
from qplan.model.load import LoadedModel
from qplan.planner.budget import parse_budgets
from qplan.rounding.rounder import Rounder
from qplan.run.folder import RunFolder
from qplan.sensitivity.kept_logits import kept_logits
from qplan.settings import Memory
from qplan.uniform import uniform_formats
from reports.peers.engine import measure_plans
from reports.plans.study import MEMORIES, SEQ_LEN, Study

BITS = (3.0, 3.5, 4.0, 4.5, 5.0, 6.0, 8.0)
UNIFORM_BITS = (3, 4, 5, 6, 8)


@dataclass(frozen=True)
class Uniform:
    """A uniform export on the engine: what a careful user of MNN's exporter has, its head at 8 bits."""

    total_bytes: int
    kl_nats: float


@dataclass(frozen=True)
class Shipped:
    """One plan as it ships, and the uniform export of its budget."""

    memory: Memory
    bits: float
    """Width of a uniform export, its head at 8 bits, with the budget's bytes; half widths lie between neighbors."""
    budget_bytes: int
    promised_bytes: int
    """Predicted bytes of the weight and embedding files."""
    built_bytes: int
    """Bytes of the same files on disk."""
    total_bytes: int
    """Bytes of these files and the graph on disk."""
    predicted_nats: float
    """Joint KL per calibration token, a scale per token."""
    kl_nats: float
    """KL on the engine, prefill, a scale per token (``dynamic_option`` 0)."""
    shipped_kl_nats: float
    """KL with the ``dynamic_option`` that the plan ships with."""
    dynamic_option: int
    uniform_bytes: int | None
    uniform_kl_nats: float | None
    """KL of the uniform export on the engine; None where none has this width."""


def shipped(study: Study, loaded: LoadedModel) -> Iterator[Shipped]:
    """Plans for all budgets under both memory settings."""
    for memory in MEMORIES:
        run = study.analyzed(memory, "all", "auto")
        uniform = _uniform(study, loaded, run, memory)
        for bits in BITS:
            edges = uniform[math.floor(bits)], uniform[math.ceil(bits)]
            limit = sum(edge.total_bytes for edge in edges) // 2
            budget = f"int{bits:g}" if edges[0] is edges[1] else f"{limit}B"
            path = run.folder / f"shipped-{bits:g}.json"
            if not path.is_file():
                emitted = _emit(study, run, budget)
                row = _row(emitted, memory, bits, edges[0] if edges[0] is edges[1] else None)
                path.write_text(json.dumps(asdict(row)), encoding="utf-8")
            yield Shipped(**json.loads(path.read_text(encoding="utf-8")))


def _emit(study: Study, run: RunFolder, budget: str) -> Emitted:
    print(f"emit --budget {budget} --run {run.folder.name}", flush=True)
    options = EmitOptions(
        wanted=PlanRequest(budgets=parse_budgets([budget])), text=study.text, tokens=study.judged * SEQ_LEN
    )
    return run_emit(options, run, lambda _: None, lambda _done, _total: None, f"qplan emit --budget {budget}")


def _row(emitted: Emitted, memory: Memory, bits: float, uniform: Uniform | None) -> Shipped:
    plan, verification = emitted.plan, emitted.verification
    built = None if verification is None else verification.model("plan")
    plain = None if built is None else built.accuracy(memory, "prefill", 0)
    own = None if built is None else built.accuracy(memory)
    if built is None or plain is None or own is None:
        msg = f"{emitted.folder}: the engine's loss is missing"
        raise RuntimeError(msg)
    return Shipped(
        memory=memory,
        bits=bits,
        budget_bytes=plan.budget_bytes,
        promised_bytes=plan.files.weight + plan.files.embedding,
        built_bytes=built.files.weight + built.files.embedding,
        total_bytes=built.files.total,
        predicted_nats=plan.predicted_nats,
        kl_nats=plain.kl_nats,
        shipped_kl_nats=own.kl_nats,
        dynamic_option=plan.dynamic_option,
        uniform_bytes=None if uniform is None else uniform.total_bytes,
        uniform_kl_nats=None if uniform is None else uniform.kl_nats,
    )


def _uniform(study: Study, loaded: LoadedModel, run: RunFolder, memory: Memory) -> dict[int, Uniform]:
    """Uniform exports of the model as it is, rounded to nearest, by width."""
    path = run.folder / "uniform.json"
    if not path.is_file():
        skeleton = run_skeleton(run, loaded, None, print, unfolded=True)
        plans = {str(bits): uniform_formats(loaded.card, bits) for bits in UNIFORM_BITS}
        with kept_logits(loaded, study.tokens(loaded).numpy()) as reference:
            found = measure_plans(plans, skeleton, reference, memory, rounder=Rounder(loaded), folder=run.folder)
        path.write_text(json.dumps({bits: [stats.kl_nats, total] for bits, (stats, total) in found.items()}))
    rows = json.loads(path.read_text(encoding="utf-8"))
    return {int(bits): Uniform(total, kl_nats) for bits, (kl_nats, total) in rows.items()}
