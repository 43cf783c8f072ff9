"""The one way from a plan to what it was made from: its run's losses, its rules and its engine."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from qplan.choosing.retarget import as_measured, computable, retarget_rules, retarget_table
from qplan.cost.file_bytes import FixedBytes
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
    """A plan with everything that it hangs on."""

    plan: Plan
    """As it was read."""
    path: Path
    """Its file."""
    run: RunFolder
    """Where its losses are."""
    engine: EngineTarget | None
    """What the engine that it is for needs; None for the installed one."""
    measured: SensitivityTable
    """The losses whose hash the plan records: the run's, with formats as that engine reads them."""
    analysis_sha256: str
    """Hash of the run's own table: plans of one analysis share it, whatever their engines."""

    @property
    def rules(self) -> Rules:
        """What the user wanted besides budgets and limits."""
        rules = Rules.of(self.plan)
        return rules if self.engine is None else retarget_rules(rules, self.engine)

    @property
    def table(self) -> SensitivityTable:
        """What the plan can choose from, under its memory setting.

        Those are `measured`, without the formats that the engine garbles where the plan ships with ``dynamic_option``
        2. A plan that people gave such a format ships without that option: it may choose from all.
        """
        plan = self.plan
        return computable(self.losses) if plan.dynamic_option == 2 and not garbled(plan.formats) else self.losses

    @cached_property
    def losses(self) -> SensitivityTable:
        """`measured` under the plan's memory setting.

        Raises:
            InputError: a setting that was not measured.
        """
        memory = next((known for known in self.measured.memories if known == self.plan.memory), None)
        if memory is None:
            have = ", ".join(self.measured.memories)
            msg = f"{self.path}: memory {self.plan.memory!r} was not measured; this run has {have}"
            raise InputError(msg)
        return self.measured.under(memory)

    @property
    def fixed(self) -> FixedBytes:
        """Bytes that ship whatever the plan, as it promises them."""
        files = self.plan.files
        other = files.weight - sum(tensor.bytes for tensor in self.plan.tensors)
        return FixedBytes(other, files.embedding, files.graph, exact=True)

    def recounted(self) -> Plan:
        """The plan with the bytes and losses of its formats, also where people have edited these and no numbers.

        Raises:
            InputError: a format that was not measured; names the line.
        """
        return recount(self.plan, self.losses, self.fixed, path=self.path)


def planned_on(found: FoundPlan, run: RunFolder | None = None, table: SensitivityTable | None = None) -> PlannedOn:
    """Find what a plan was made from.

    Args:
        found: the plan.
        run: None for the run that its file lies in.
        table: of that run, if it has been read already.

    Raises:
        InputError: no such table, an engine that nothing runs on, or a plan that does not fit the model; names the
            line.
        StaleArtifactError: the run has other losses by now.
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
    """What the engine that a plan is for needs; None for the installed one.

    Raises:
        InputError: no model is known to run there.
    """
    return None if plan.engine is None else EngineTarget.of(EngineVersion.parse(plan.engine))


def edited_plan(planned: PlannedOn, table: SensitivityTable, target: EngineTarget, fixed: FixedBytes) -> Plan:
    """A plan that people may have edited, with its bytes and losses counted again.

    A plan that grew over its budget keeps the budget's name, but promises its own bytes: whoever edits a plan decides
    them.

    Args:
        planned: the plan, and what it was made from.
        table: the losses that it is built with: those of its own engine, or of another.
        target: that engine.
        fixed: bytes that ship whatever the plan.

    Raises:
        InputError: a format that was not measured; names the line.
    """
    plan = planned.plan
    tensors = tuple(replace(t, format=as_measured(t.format, table.formats_of(t.name), target)) for t in plan.tensors)
    plan = recount(replace(plan, tensors=tensors), table, fixed, path=planned.path)
    return replace(plan, budget_bytes=max(plan.budget_bytes, plan.files.total))
