"""A run's table and rules for the engine and the settings that a model will run with."""

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
    """The table with formats that the engine reads.

    Losses stay: wider scales lose a little less than what was measured.
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
        InputError: a tensor is left without any.
    """
    rows = tuple(m for m in table.measurements if QuantFormat.parse(m.format).allows_block_activations)
    bare = sorted({m.tensor for m in table.measurements} - {m.tensor for m in rows})
    if bare:
        msg = (
            f"the engine computes none of the measured formats of {bare[0]} with --dynamic-option 2; "
            "analyze with --formats that have one scale per row, e.g. int8-b0, or take --dynamic-option 0"
        )
        raise InputError(msg)
    return replace(table, measurements=rows)


def as_measured(fmt: QuantFormat, measured: Sequence[QuantFormat], target: EngineTarget) -> QuantFormat:
    """A format of a plan for one engine, as another engine's table has it: with the scales that it reads.

    Args:
        fmt: in the plan.
        measured: what the table has for its tensor.
        target: the other engine.
    """
    if fmt in measured or fmt.is_float:
        return fmt
    return target.wide(replace(fmt, scale_bits=16))


def retarget_rules(rules: Rules, target: EngineTarget) -> Rules:
    """The same rules, held against the uniform export that the engine reads."""
    return replace(rules, uniform_scale_bits=target.scale_bits)
