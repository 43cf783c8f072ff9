"""A plan with the losses that it was made from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from qplan.cost.file_bytes import FixedBytes
from qplan.errors import StaleArtifactError
from qplan.planner.validate import recount, validate_plan
from qplan.run.folder import RunFolder
from qplan.run.plan import Plan
from qplan.run.plans import FoundPlan, run_of
from qplan.run.table import SensitivityTable


def table_of(found: FoundPlan, run: RunFolder | None = None) -> SensitivityTable:
    """The losses that a plan was made from: those of the run it lies in, or of the given one.

    Raises:
        InputError: no such table, or the plan does not fit its model; names the line.
        StaleArtifactError: the table is another one.
    """
    home = run or run_of(found.path)
    table = SensitivityTable.read(home.sensitivity)
    validate_plan(found.plan, table.model, found.path)
    if table.sha256 != found.plan.sensitivity_sha256:
        msg = (
            f"{found.path} was made from other losses than {home.sensitivity}; name its run with --run, or make the "
            "plan again with 'qplan emit'"
        )
        raise StaleArtifactError(msg)
    return table


def recounted(found: FoundPlan, run: RunFolder | None = None) -> Plan:
    """A plan with the bytes and losses of its formats, also where people have edited these and no numbers.

    Raises:
        InputError: a plan that does not fit the model, the engine or the analysis; names the line.
        StaleArtifactError: the losses are not those that the plan was made from.
    """
    table, files = table_of(found, run), found.plan.files
    other = files.weight - sum(tensor.bytes for tensor in found.plan.tensors)
    return recount(found.plan, table, FixedBytes(other, files.embedding, files.graph, exact=True), path=found.path)


def edited_plan(path: Path, table: SensitivityTable, fixed: FixedBytes) -> Plan:
    """Read a plan that people may have edited, and count its bytes and losses again.

    A plan that grew over its budget keeps the budget's name, but promises its own bytes: whoever edits a plan decides
    them.

    Raises:
        InputError: not a plan, or one that does not fit the model, the engine or the analysis; names the line.
        StaleArtifactError: a plan of another model or of other losses.
    """
    plan = Plan.read(path)
    validate_plan(plan, table.model, path)
    if plan.sensitivity_sha256 != table.sha256:
        msg = f"{path} was made from other losses than this run's; make it again with 'qplan emit', or name its --run"
        raise StaleArtifactError(msg)
    plan = recount(plan, table, fixed, path=path)
    return replace(plan, budget_bytes=max(plan.budget_bytes, plan.files.total))
