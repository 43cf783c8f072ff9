"""Peers' allocations as plans of qplan's formats, and qplan's own plans of the same bytes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from qplan.card import ModelCard
from qplan.cost.file_bytes import FixedBytes, file_bytes
from qplan.errors import MeasurementError
from qplan.formats import QuantFormat, parse_formats
from qplan.planner.budget import Budget
from qplan.planner.planning import make_plan
from qplan.planner.rules import Rules
from qplan.run.table import SensitivityTable
from qplan.settings import Memory
from qplan.tensors import Role
from reports.peers.scorers import Scorer

Menu = Literal["4/8", "2-16"]
"""Widths that qplan may choose from: the peers', or its default formats and int2."""

MENUS: dict[Menu, tuple[QuantFormat, ...]] = {
    "4/8": parse_formats("int8,int4"),
    "2-16": parse_formats("fp16,int8,int6,int5,int4,int3,int2"),
}

HEAD_BITS = 8
"""Width of a head that a peer does not plan, and qplan's own lower limit for the head."""


@dataclass(frozen=True)
class Case:
    """One plan of a peer."""

    scorer: str
    budget: float
    """Mean width that the peer was asked for, in bits, without scales."""
    bits: float
    """Mean width of the tensors that it planned, in bits."""
    plans_head: bool
    """Whether it chose the head's width, which is `HEAD_BITS` otherwise."""
    formats: dict[str, QuantFormat]
    total_bytes: int
    """Bytes of all files of the model that qplan builds from it."""

    @property
    def label(self) -> str:
        """Name of the case."""
        return f"{self.scorer} {self.budget:g}"


def case_of(scorer: Scorer, budget: float, widths: Mapping[str, int], card: ModelCard, fixed: FixedBytes) -> Case:
    """Turn an allocation into formats: integers with zero points in blocks of 64, as qplan writes them.

    Raises:
        MeasurementError: a tensor that is not planned and is not the head, or a width other than 4 and 8.
    """
    formats = {}
    for spec in card.tensors:
        width = widths.get(spec.name, HEAD_BITS if spec.role is Role.HEAD else 0)
        if width not in (4, 8):
            msg = f"{scorer.label} at {budget:g} bits: {spec.name} has {width} bits, expected 4 or 8"
            raise MeasurementError(msg)
        formats[spec.name] = QuantFormat(width).resolve(spec.in_features)
    planned = [spec for spec in card.tensors if spec.name in widths]
    bits = sum(widths[spec.name] * spec.weights for spec in planned) / sum(spec.weights for spec in planned)
    return Case(
        scorer.label,
        budget,
        bits,
        any(spec.role is Role.HEAD for spec in planned),
        formats,
        file_bytes(card, formats, fixed).total,
    )


def own_plan(table: SensitivityTable, case: Case, fixed: FixedBytes) -> dict[str, QuantFormat]:
    """Qplan's plan within the bytes of a peer's; its rule for the head applies where the peer has one too."""
    plan = make_plan(
        table, Budget.of_bytes(case.total_bytes), fixed, rules=Rules(logits_bits=0 if case.plans_head else HEAD_BITS)
    )
    return plan.formats


def view(table: SensitivityTable, menu: Menu, memory: Memory) -> SensitivityTable:
    """The part of a table that has some formats, with one of its memory settings as the goal."""
    widths = {fmt.bits for fmt in MENUS[menu]}
    rows = (m for m in table.measurements if QuantFormat.parse(m.format).bits in widths)
    if memory != table.goal:
        rows = (m for m in rows if m.memory == memory)
    return replace(table, conditions=replace(table.conditions, memory=memory), measurements=tuple(rows))


def distinct(plans: Iterable[dict[str, QuantFormat]]) -> dict[str, dict[str, QuantFormat]]:
    """Plans by a key that equal plans share; see `key_of`."""
    return {key_of(formats): formats for formats in plans}


def key_of(formats: Mapping[str, QuantFormat]) -> str:
    """A key that is the same for equal plans."""
    return ",".join(f"{name}={formats[name]}" for name in sorted(formats))
