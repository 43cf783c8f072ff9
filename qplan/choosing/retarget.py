"""Adapts a run's table and rules to the engine and settings that a model will run with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from qplan.errors import InputError
from qplan.formats import QuantFormat
from qplan.mnn.engines import EngineTarget
from qplan.notes import note
from qplan.planner.rules import Rules
from qplan.run.table import SensitivityTable


def retarget_table(table: SensitivityTable, target: EngineTarget) -> SensitivityTable:
    """The table with formats as an engine reads them.

    Losses are kept: wider scales lose slightly less than was measured.
    """
    if target.scale_bits == 16:
        return table

    def renamed(name: str) -> str:
        return target.wide(QuantFormat.parse(name)).name

    conditions = replace(table.conditions, formats=tuple(dict.fromkeys(map(renamed, table.conditions.formats))))
    measurements = {(m.tensor, renamed(m.format), m.memory, m.batch): m for m in table.measurements}
    return replace(
        table,
        conditions=conditions,
        measurements=tuple(replace(m, format=name) for (_, name, _, _), m in measurements.items()),
        notes=(*table.notes, note("wide-scales", engine=str(target.engine))),
    )


def computable(table: SensitivityTable) -> SensitivityTable:
    """The table without the formats that the engine garbles under ``dynamic_option`` 2.

    Raises:
        InputError: a tensor is left without any format.
    """
    rows = tuple(m for m in table.measurements if QuantFormat.parse(m.format).allows_block_activations)
    bare = sorted({m.tensor for m in table.measurements} - {m.tensor for m in rows})
    if bare:
        msg = (
            f"the engine computes none of the measured formats of {bare[0]} with --dynamic-option 2; "
            "analyze with --formats that have one scale per row, e.g. int8-b0, or use --dynamic-option 0"
        )
        raise InputError(msg)
    return replace(table, measurements=rows)


def as_measured(fmt: QuantFormat, measured: Sequence[QuantFormat], target: EngineTarget) -> QuantFormat:
    """Translate a format from a plan for one engine to another engine's table, whose scales may differ.

    Args:
        fmt: the format in the plan.
        measured: the formats that the table has for its tensor.
        target: the other engine.
    """
    if fmt in measured or fmt.is_float:
        return fmt
    return target.wide(replace(fmt, scale_bits=16))


def retarget_rules(rules: Rules, target: EngineTarget) -> Rules:
    """The same rules, with uniform exports as the engine reads them."""
    return replace(rules, uniform_scale_bits=target.scale_bits)
