"""A run's table, skeleton and budget for an engine that reads other models than the installed one."""

from __future__ import annotations

from dataclasses import replace

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


def retarget_rules(rules: Rules, target: EngineTarget) -> Rules:
    """The same rules, held against the uniform export that the engine reads."""
    return replace(rules, uniform_scale_bits=target.scale_bits)
