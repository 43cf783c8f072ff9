"""The frontier as one list of plans and uniform models by size, for tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from qplan.card import ModelCard
from qplan.formats import QuantFormat
from qplan.run.frontier import Frontier, FrontierPoint
from qplan.run.table import SensitivityTable
from qplan.tensors import Role

KNEE = "knee"


@dataclass(frozen=True)
class FrontierRow:
    """One line of the table."""

    label: str
    """``knee`` where the curve bends, the name of a uniform model, or empty."""
    is_uniform: bool
    total_bytes: int
    bpw: float | None
    joint_nats: float
    against_uniform: float | None
    """Loss over that of the best uniform model of at most these bytes; None where none is as small."""
    widths: Mapping[int, float]
    """Share of the weights by width, without the head; widths ascending, empty for uniform models."""
    head: str


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
        )
        for m in frontier.uniform
    ]
    return tuple(sorted(rows, key=lambda row: (row.total_bytes, row.is_uniform)))


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
    )


def shares(card: ModelCard, formats: Mapping[str, QuantFormat]) -> dict[int, float]:
    """Share of the weights by width, without the head; widths ascending."""
    weights: Counter[int] = Counter()
    for spec in card.tensors:
        if spec.role is not Role.HEAD:
            weights[formats[spec.name].bits] += spec.weights
    total = sum(weights.values())
    return {bits: count / total for bits, count in sorted(weights.items())}
