"""The table of tensors: each with its format in the plan and its losses in all formats, the most sensitive first."""

from __future__ import annotations

from dataclasses import dataclass

from qplan.report import grid
from qplan.report.grid import HeatScale, LossTable
from qplan.run.measurement import Loss
from qplan.run.plan import Plan, PlannedTensor


@dataclass(frozen=True)
class TensorCell:
    """A tensor in one format."""

    loss: Loss | None
    """None where it was not measured."""
    step: int
    """Step of the heat scale."""
    chosen: bool
    """Whether it is the plan's format."""
    stored: str
    """Name of the stored format if it differs from the column's, otherwise empty."""


@dataclass(frozen=True)
class TensorRow:
    """One tensor."""

    name: str
    planned: PlannedTensor
    own: Loss | None
    """Loss in the plan's format; None for a format outside the columns."""
    cells: tuple[TensorCell, ...]
    """One cell per column of the loss table."""


def tensor_rows(plan: Plan, losses: LossTable, scale: HeatScale | None) -> tuple[TensorRow, ...]:
    """Rows by loss, the largest first; only as many as keep the page small."""
    planned = {tensor.name: tensor for tensor in plan.tensors}
    most = grid.DETAILED_CELLS // max(len(losses.formats), 1)
    return tuple(_row(planned[name], losses, scale) for name in losses.ranked()[:most])


def _row(planned: PlannedTensor, losses: LossTable, scale: HeatScale | None) -> TensorRow:
    measured = losses.losses[planned.name]
    cells, own = [], None
    for name in losses.formats:
        loss = measured.get(name)
        stored = losses.stored_as.get((planned.name, name), name)
        chosen = stored == planned.format.name
        if chosen and loss is not None:
            own = loss
        step = 0 if scale is None or loss is None else scale.step(loss.kl_nats)
        cells.append(TensorCell(loss, step, chosen, "" if stored == name else stored))
    return TensorRow(planned.name, planned, own, tuple(cells))
