"""The grid that plan map and heat map share: kinds of tensors down, decoder layers across, the rest apart."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from qplan.formats import FP32, QuantFormat
from qplan.report.palette import HEAT_STEPS
from qplan.run.measurement import Loss
from qplan.run.table import SensitivityTable
from qplan.tensors import TensorSpec

_ORDER = ("q_proj", "k_proj", "v_proj", "qkv_proj", "o_proj", "gate_proj", "up_proj", "gate_up_proj", "down_proj")


@dataclass(frozen=True)
class Grid:
    """Where every tensor is drawn."""

    kinds: tuple[str, ...]
    """Rows, attention before MLP, unknown kinds in order of execution."""
    layers: tuple[int, ...]
    """Columns."""
    cells: Mapping[tuple[str, int], tuple[str, ...]]
    """Tensor names by kind and layer; more than one where a layer repeats a kind (experts)."""
    apart: tuple[str, ...]
    """Tensors outside the layers: the head, and an untied embedding."""


def grid_of(tensors: Iterable[TensorSpec]) -> Grid:
    """Arrange the tensors of a model."""
    specs = tuple(tensors)
    cells: dict[tuple[str, int], list[str]] = {}
    for spec in specs:
        if spec.layer is not None:
            cells.setdefault((spec.kind, spec.layer), []).append(spec.name)
    found = dict.fromkeys(kind for kind, _ in cells)
    kinds = [kind for kind in _ORDER if kind in found] + [kind for kind in found if kind not in _ORDER]
    return Grid(
        tuple(kinds),
        tuple(sorted({layer for _, layer in cells})),
        {place: tuple(names) for place, names in cells.items()},
        tuple(spec.name for spec in specs if spec.layer is None),
    )


DETAILED_CELLS = 7_500
"""Up to this many losses a page holds every number of each. Above (over 82 layers of 7 tensors in 13 formats, experts)
tooltips are short, the table of tensors ends early and the slider shows totals, so that it stays below 3 MB."""


@dataclass(frozen=True)
class LossTable:
    """Losses by tensor and by format of the run, whatever block a tensor's width forced."""

    formats: tuple[str, ...]
    """Columns, widest first."""
    losses: Mapping[str, Mapping[str, Loss]]
    """Loss by tensor name, then column."""
    stored_as: Mapping[tuple[str, str], str]
    """Stored format by (tensor, column), where its name differs from the column's."""
    ranked_by: str
    """Narrowest column in which every tensor was measured, otherwise the one with the most tensors."""

    @property
    def detailed(self) -> bool:
        """Whether a page has room for every number of every tensor in every format."""
        return len(self.losses) * len(self.formats) <= DETAILED_CELLS

    def ranked(self) -> tuple[str, ...]:
        """Tensor names, the most sensitive first."""

        def key(name: str) -> float:
            cell = self.losses[name].get(self.ranked_by)
            return -math.inf if cell is None else cell.kl_nats

        return tuple(sorted(self.losses, key=key, reverse=True))


def loss_table(table: SensitivityTable) -> LossTable:
    """Arrange a run's losses under the formats of its analysis."""
    asked = sorted({QuantFormat.parse(name) for name in table.conditions.formats}, key=_widest_first)
    measured = table.losses()
    losses: dict[str, dict[str, Loss]] = {}
    stored_as: dict[tuple[str, str], str] = {}
    for spec in table.model.planned:
        row = dict(measured[spec.name])
        losses[spec.name] = {}
        for fmt in asked:
            stored = spec.resolve(fmt).name
            if stored in measured[spec.name]:
                losses[spec.name][fmt.name] = measured[spec.name][stored]
                row.pop(stored, None)
                if stored != fmt.name:
                    stored_as[spec.name, fmt.name] = stored
        losses[spec.name] |= {name: cell for name, cell in row.items() if name != FP32.name}
    names = {name for row in losses.values() for name in row}
    formats = tuple(fmt.name for fmt in sorted(map(QuantFormat.parse, names), key=_widest_first))
    reached = {name: sum(name in row for row in losses.values()) for name in formats}
    widest_reach = max(reached.values(), default=0)
    ranked_by = next((name for name in reversed(formats) if reached[name] == widest_reach), "")
    return LossTable(formats, losses, stored_as, ranked_by)


def _widest_first(fmt: QuantFormat) -> tuple[int, int, bool, int]:
    return -fmt.bits, fmt.block, fmt.symmetric, fmt.scale_bits


@dataclass(frozen=True)
class HeatScale:
    """A logarithmic scale from ``low`` to ``high`` nats in `HEAT_STEPS` steps."""

    low: float
    high: float

    def step(self, nats: float) -> int:
        """The step of a loss; zero and everything up to ``low`` is step 0."""
        if nats <= self.low:
            return 0
        if self.high <= self.low:
            return HEAT_STEPS - 1
        share = math.log(nats / self.low) / math.log(self.high / self.low)
        return min(HEAT_STEPS - 1, int(share * HEAT_STEPS))

    @property
    def decades(self) -> tuple[float, ...]:
        """Powers of ten inside the scale."""
        first, last = math.ceil(math.log10(self.low) - 1e-9), math.floor(math.log10(self.high) + 1e-9)
        return tuple(10.0**exponent for exponent in range(first, last + 1))


def heat_scale(losses: LossTable) -> HeatScale | None:
    """One scale for all formats, so that a color means the same loss everywhere; None if every loss is zero.

    It starts at the smallest loss of an integer format, not of a float, and spans five decades at most:
    fp16 loses a thousandth of what integers lose, and would take the contrast away from them.
    """
    integer = [
        cell.kl_nats for row in losses.losses.values() for f, cell in row.items() if not QuantFormat.parse(f).is_float
    ]
    every = [cell.kl_nats for row in losses.losses.values() for cell in row.values()]
    positive = [nats for nats in integer if nats > 0] or [nats for nats in every if nats > 0]
    if not positive:
        return None
    high = max(*positive, *every)
    return HeatScale(max(min(positive), high / 1e5), high)
