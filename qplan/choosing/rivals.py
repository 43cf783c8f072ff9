"""The best uniform exports within a plan's limits: found by what their weights lose, then measured as whole models."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from qplan.choosing.context import EVEN, PlanningContext
from qplan.cost.file_bytes import file_bytes
from qplan.errors import MeasurementError
from qplan.formats import Formats, QuantFormat
from qplan.planner.ceiling import Ceiling
from qplan.planner.limits import ResourceLimit
from qplan.planner.uniform import exports_within
from qplan.rounding.methods import round_with
from qplan.run.plan import Rival
from qplan.tensors import Role, TensorSpec
from qplan.uniform import UniformExport

_ROWS, _TENSORS = 64, 256
"""Rows of a tensor, and tensors besides the head, that tell what an export's weights lose."""


@dataclass(frozen=True)
class Measured:
    """A uniform export and what its whole model loses."""

    export: UniformExport
    formats: Formats
    total_bytes: int
    nats: float
    """On half of the held-out rows, under the table's memory setting."""

    @property
    def recorded(self) -> Rival:
        """The export as a plan records it."""
        return Rival(self.export.name, self.total_bytes, self.nats, self.export.command)


def best_rivals(
    context: PlanningContext,
    limit_bytes: int,
    limits: Sequence[Ceiling | ResourceLimit] = (),
) -> tuple[Measured, ...]:
    """The uniform exports within the limits of a plan that lose least, the best first; empty if none keeps to them.

    Args:
        context: the means to measure whole models, and the rules.
        limit_bytes: of the files, as the budget means them.
        limits: further ones; those on losses do not count.
    """
    rules, table = context.rules, context.table
    fixed = rules.uniform_fixed or context.fixed
    within = exports_within(
        table.model, fixed, limit_bytes, limits, target=rules.target, scale_bits=rules.uniform_scale_bits
    )
    best = by_weights(context, within)[: context.rivals]
    measured = []
    for export in best:
        formats = export.formats(table.model, rules.uniform_scale_bits)
        try:
            nats = context.whole({"": formats}, rounder=context.exporter(export.rounding), rows=EVEN)[""].kl_nats
        except MeasurementError as error:  # a scale that MNN's exporter cannot store: nobody can use that model
            context.say(f"uniform {export.name} is left out: {error}")
            continue
        measured.append(Measured(export, formats, file_bytes(table.model, formats, fixed).total, nats))
    return tuple(sorted(measured, key=lambda rival: rival.nats))


def by_weights(context: PlanningContext, exports: Iterable[UniformExport]) -> list[UniformExport]:
    """Exports by what their weights lose, the least first.

    A tensor's loss is taken to grow with the square error of its weights, from what was measured of one format. Some
    rows of some tensors tell that error: this takes no longer on a model of billions of weights.
    """
    several = list(exports)
    if len(several) < 2:  # noqa: PLR2004
        return several
    table, scale_bits = context.table, context.rules.uniform_scale_bits
    losses = table.kl("normal" if "normal" in table.memories else table.goal)
    sums = dict.fromkeys(several, 0.0)
    with torch.no_grad():
        for spec in _sample(table.model.tensors):
            weight = _some_rows(context, spec)
            least = min((fmt for fmt in table.formats_of(spec.name) if not fmt.is_float), key=_narrow, default=None)
            price = 1.0 if least is None else losses[spec.name][least.name] / (_error(weight, least) or 1.0)
            errors: dict[tuple[QuantFormat, str], float] = {}
            for export in several:
                way = export.format(spec, scale_bits), export.rounding
                if way not in errors:
                    errors[way] = _error(weight, *way)
                sums[export] += price * errors[way]
    return sorted(several, key=lambda export: sums[export])


def _sample(specs: Sequence[TensorSpec]) -> list[TensorSpec]:
    heads = [spec for spec in specs if spec.role is Role.HEAD]
    others = [spec for spec in specs if spec.role is not Role.HEAD]
    return heads + others[:: -(-len(others) // _TENSORS) or 1]


def _some_rows(context: PlanningContext, spec: TensorSpec) -> torch.Tensor:
    """Rows from the middle of a matrix, as it is exported."""
    start = max(0, (spec.out_features - _ROWS) // 2)
    return context.nearest.loaded.weight(spec.name, slice(start, start + _ROWS)).to(torch.float32)


def _narrow(fmt: QuantFormat) -> tuple[int, int]:
    """Sorts 4 bits and blocks of 64 first: what a tensor loses there is neither noise nor ruin."""
    return abs(fmt.bits - 4), abs(fmt.block - 64)


def _error(weight: torch.Tensor, fmt: QuantFormat, rounding: str = "rtn") -> float:
    """Square error of the weights that are stored; infinite where they are no numbers."""
    error = float((weight - round_with(rounding, weight, fmt).dequantize()).square().sum())
    return math.inf if math.isnan(error) else error
