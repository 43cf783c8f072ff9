"""The frontier as one list of plans and uniform models by size, for tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TypedDict

from qplan.card import ModelCard
from qplan.cost.footprint import Footprint
from qplan.formats import FP16, QuantFormat
from qplan.run.frontier import Frontier, FrontierPoint
from qplan.run.table import SensitivityTable
from qplan.tensors import Role

KNEE = "knee"

UNIFORM_EMBEDDING = FP16
"""Format of an untied embedding in uniform models, as it is exported by default."""


@dataclass(frozen=True)
class FrontierRow:
    """One line of the table."""

    label: str
    """``knee`` where the curve bends, the name of a uniform model or of a plan that keeps to all of it, or empty."""
    is_uniform: bool
    total_bytes: int
    bpw: float | None
    joint_nats: float
    against_uniform: float | None
    """Loss over that of the best uniform model of at most these bytes; None where none is as small."""
    widths: Mapping[int, float]
    """Share of the weights by width, without head and embedding; widths ascending, empty for uniform models."""
    head: str
    embedding: str = ""
    """Format of an untied embedding; empty where the plans hold none."""
    ram_bytes: int | None = None
    """Predicted RAM of the weights."""
    decode: float | None = None
    """Predicted time per decoded token, over that of uniform int8."""
    prefill: float | None = None
    """The same of a prefill."""
    is_named: bool = False
    """Whether it is the plan of a budget that names a uniform model, which limits RAM and times too."""


def frontier_rows(table: SensitivityTable, frontier: Frontier) -> tuple[FrontierRow, ...]:
    """Plans and uniform models in one list, bytes ascending."""
    rows = [_plan_row(table.model, frontier, point) for point in frontier.points]
    rows += [
        FrontierRow(
            f"uniform {m.name}",
            is_uniform=True,
            total_bytes=m.total_bytes,
            bpw=None,
            joint_nats=m.joint_nats,
            against_uniform=None,
            widths={},
            head="fp16" if m.name == "fp16" else "int8",
            embedding="" if table.model.embedding is None else UNIFORM_EMBEDDING.name,
            **_felt(frontier, m.footprint),
        )
        for m in frontier.uniform
    ]
    rows += [
        replace(_plan_row(table.model, frontier, plan.point), label=f"plan {plan.name}", is_named=True)
        for plan in frontier.named
    ]
    return tuple(sorted(rows, key=lambda row: (row.total_bytes, row.is_uniform)))


class _Felt(TypedDict, total=False):
    ram_bytes: int
    decode: float
    prefill: float


def _felt(frontier: Frontier, found: Footprint | None) -> _Felt:
    """RAM, and times over those of uniform int8."""
    int8 = next((m.footprint for m in frontier.uniform if m.name == "int8"), None)
    if found is None:
        return {}
    if int8 is None:
        return {"ram_bytes": found.ram_bytes}
    return {
        "ram_bytes": found.ram_bytes,
        "decode": found.decode / int8.decode,
        "prefill": found.prefill / int8.prefill,
    }


def against_uniform(frontier: Frontier, point: FrontierPoint) -> float | None:
    """Loss over that of the best uniform model of at most these bytes; None where none is as small."""
    fitting = [m.joint_nats for m in frontier.uniform if m.total_bytes <= point.total_bytes]
    best = min(fitting, default=None)
    return point.joint_nats / best if best else None


def _plan_row(card: ModelCard, frontier: Frontier, point: FrontierPoint) -> FrontierRow:
    return FrontierRow(
        KNEE if point.knee else "",
        is_uniform=False,
        total_bytes=point.total_bytes,
        bpw=point.bpw,
        joint_nats=point.joint_nats,
        against_uniform=against_uniform(frontier, point),
        widths=shares(card, point.formats),
        head=", ".join(point.formats[s.name].name for s in card.tensors if s.role is Role.HEAD),
        embedding="" if card.embedding is None else point.formats[card.embedding.name].name,
        **_felt(frontier, point.footprint),
    )


def shares(card: ModelCard, formats: Mapping[str, QuantFormat]) -> dict[int, float]:
    """Share of the weights by width, without the head and an untied embedding; widths ascending."""
    weights: Counter[int] = Counter()
    for spec in card.tensors:
        if spec.role is not Role.HEAD:
            weights[formats[spec.name].bits] += spec.weights
    total = sum(weights.values())
    return {bits: count / total for bits, count in sorted(weights.items())}
