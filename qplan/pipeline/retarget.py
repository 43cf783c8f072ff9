"""A run's table, skeleton and budget for an engine that reads other models than the installed one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from qplan.formats import QuantFormat
from qplan.mnn.engine_venv import EngineVenv
from qplan.mnn.engines import EngineTarget
from qplan.mnn.preflight import check_folder
from qplan.mnn.probe import run_probe
from qplan.mnn.runtime import RuntimeConfig
from qplan.planner.rules import Rules
from qplan.sensitivity.table import SensitivityTable
from qplan.verify.record import Check
from qplan.verify.reference import Logits

VENVS = Path("qplan-engines")
"""Where ``qplan compat measure`` keeps engines."""

RIGHT_REL = 1e-3
"""Largest relative error of an engine's logits against torch with the same stored weights, memory normal."""


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
        notes=(*table.notes, f"scales have 32 bits: engine {target.engine} reads no others"),
    )


def retarget_rules(rules: Rules, target: EngineTarget) -> Rules:
    """The same rules, held against the uniform export that the engine reads."""
    return replace(rules, uniform_scale_bits=target.scale_bits)


def engine_checks(model: Path, target: EngineTarget, token_ids: list[int], expected: Logits) -> tuple[Check, ...]:
    """Whether the built model is right for the engine: by preflight, and on that very engine if there is one here.

    Args:
        model: the built folder.
        target: the engine.
        token_ids: one sequence.
        expected: logits ``[tokens, vocabulary]`` in torch with the same stored weights.
    """
    found = check_folder(model, target.engine).errors
    detail = "; ".join(f"{finding.code}: {finding.what}" for finding in found) or "nothing found"
    checks = [Check(f"qplan check for engine {target.engine}", not found, detail)]
    home = EngineVenv(target.engine, VENVS / str(target.engine))
    if home.python.is_file():
        ran = run_probe(model, token_ids, RuntimeConfig("normal"), python=home.python)
        outcome, error = ran.judged(expected, RIGHT_REL)
        shown = ran.detail or outcome if error is None else f"relative error {error:.1e}, limit {RIGHT_REL:.0e}"
        checks.append(Check(f"engine {target.engine} computes what torch computes", outcome == "ok", shown))
    return tuple(checks)
