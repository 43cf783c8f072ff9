"""Finds what a plan was made from: its run's losses, its rules and its engine. Nothing else does this."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from qplan.choosing.retarget import as_measured, computable, retarget_rules, retarget_table
from qplan.cost.file_bytes import FixedBytes, fixed_embedding
from qplan.errors import InputError, StaleArtifactError
from qplan.formats import garbled
from qplan.mnn.engines import EngineTarget, EngineVersion
from qplan.planner.rules import Rules
from qplan.planner.validate import recount, validate_plan
from qplan.run.folder import RunFolder
from qplan.run.plan import Plan
from qplan.run.plans import FoundPlan, run_of
from qplan.run.table import SensitivityTable


@dataclass(frozen=True, eq=False)
class PlannedOn:
    """A plan with everything that it was made from."""

    plan: Plan
    """The plan as stored."""
    path: Path
    """The plan's file."""
    run: RunFolder
    """The run that holds its losses."""
    engine: EngineTarget | None
    """The engine that the plan was made for; None for the installed one."""
    measured: SensitivityTable
    """The table whose hash the plan records: the run's, with formats as that engine reads them."""
    analysis_sha256: str
    """Hash of the run's own table, which plans of one analysis share across engines."""

    @property
    def rules(self) -> Rules:
        """What the user asked for besides budgets and limits."""
        rules = Rules.of(self.plan)
        return rules if self.engine is None else retarget_rules(rules, self.engine)

    @property
    def table(self) -> SensitivityTable:
        """The formats that the plan can choose from, under its memory setting.

        These are `losses`, without the formats that the engine garbles if the plan ships with ``dynamic_option`` 2. A
        plan that was edited to use such a format ships without that option, and may choose from all formats.
        """
        plan = self.plan
        return computable(self.losses) if plan.dynamic_option == 2 and not garbled(plan.formats) else self.losses

    @cached_property
    def losses(self) -> SensitivityTable:
        """`measured` under the plan's memory setting.

        Raises:
            InputError: the setting was not measured.
        """
        memory = next((known for known in self.measured.memories if known == self.plan.memory), None)
        if memory is None:
            have = ", ".join(self.measured.memories)
            msg = f"{self.path}: memory {self.plan.memory!r} was not measured; this run has {have}"
            raise InputError(msg)
        return Rules.of(self.plan).seen(self.measured.under(memory))

    @property
    def fixed(self) -> FixedBytes:
        """Bytes that every plan ships, as this plan counts them."""
        files, card = self.plan.files, self.measured.model
        other = files.weight - sum(tensor.bytes for tensor in self.plan.tensors if not tensor.is_embedding)
        return FixedBytes(other, fixed_embedding(card, files.embedding), files.graph, exact=True)

    def recounted(self) -> Plan:
        """The plan with bytes and losses recomputed from its formats, which may have been edited by hand.

        Raises:
            InputError: a format was not measured; the message gives the line.
        """
        return recount(self.plan, self.losses, self.fixed, path=self.path)


def planned_on(found: FoundPlan, run: RunFolder | None = None, table: SensitivityTable | None = None) -> PlannedOn:
    """Find what a plan was made from.

    Args:
        found: the plan.
        run: the run it was made from; None for the one that holds the file.
        table: the run's table, if it has been read already.

    Raises:
        InputError: there is no table, no model is known to run on the engine, or the plan does not fit the model; the
            message gives the line.
        StaleArtifactError: the run now has other losses.
    """
    home = run or run_of(found.path)
    table = table or SensitivityTable.read(home.sensitivity)
    engine = engine_of(found.plan)
    measured = table if engine is None else retarget_table(table, engine)
    validate_plan(found.plan, measured.model, found.path)
    if measured.sha256 != found.plan.sensitivity_sha256:
        msg = (
            f"{found.path} was made from other losses than {home.sensitivity}; name its run with --run, or make the "
            "plan again with 'qplan emit'"
        )
        raise StaleArtifactError(msg)
    return PlannedOn(found.plan, found.path, home, engine, measured, table.sha256)


def engine_of(plan: Plan) -> EngineTarget | None:
    """The engine that a plan was made for; None for the installed one.

    Raises:
        InputError: no model is known to run on it.
    """
    return None if plan.engine is None else EngineTarget.of(EngineVersion.parse(plan.engine))


def edited_plan(planned: PlannedOn, table: SensitivityTable, target: EngineTarget, fixed: FixedBytes) -> Plan:
    """Recompute bytes and losses of a plan that may have been edited by hand, to build it for an engine.

    A plan that outgrew its budget keeps the budget's name, but its own bytes become the limit.

    Args:
        planned: the plan, and what it was made from.
        table: losses of the engine that it is built for, which need not be the plan's own.
        target: that engine.
        fixed: bytes that every plan ships.

    Raises:
        InputError: a format was not measured; the message gives the line.
    """
    plan = planned.plan
    tensors = tuple(
        replace(
            tensor,
            format=table.model.tensor(tensor.name).resolve(tensor.format)
            if tensor.is_embedding
            else as_measured(tensor.format, table.formats_of(tensor.name), target),
        )
        for tensor in plan.tensors
    )
    plan = recount(replace(plan, tensors=tensors), table, fixed, path=planned.path)
    return replace(plan, budget_bytes=max(plan.budget_bytes, plan.files.total))
