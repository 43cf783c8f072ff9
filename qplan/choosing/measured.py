"""What the engine measured on the plans that were made from a run's table."""

from __future__ import annotations

from collections.abc import Iterator

from qplan.choosing.planned import engine_of
from qplan.choosing.retarget import retarget_table
from qplan.run.folder import RunFolder
from qplan.run.frontier import MeasuredModel
from qplan.run.table import SensitivityTable
from qplan.run.verified import VerifiedPlan, verified_plans


def plans_of(run: RunFolder, table: SensitivityTable) -> Iterator[VerifiedPlan]:
    """Verified plans that were made from a table, for any engine, in order of their names.

    Args:
        run: the run that holds the plans.
        table: the run's table.
    """
    hashes: dict[str | None, str] = {}
    for verified in verified_plans(run):
        plan = verified.plan
        if plan.engine not in hashes:
            engine = engine_of(plan)
            hashes[plan.engine] = (table if engine is None else retarget_table(table, engine)).sha256
        same_model = verified.verification.model_sha256 == table.model.sha256
        if same_model and plan.sensitivity_sha256 == hashes[plan.engine]:
            yield verified


def measured_models(run: RunFolder, table: SensitivityTable) -> tuple[MeasuredModel, ...]:
    """What the engine measured in a run: plans made from its table, and MNN's uniform exports.

    Names of models for another engine include its version, since the same format takes other bytes there.
    """
    found: dict[str, MeasuredModel] = {}
    for verified in plans_of(run, table):
        engine = verified.plan.engine
        for model in verified.verification.models:
            accuracy = model.accuracy(table.goal)
            if accuracy is not None:
                is_plan = model.name == "plan"
                uniform = model.name if engine is None else f"{model.name}-mnn-{engine}"
                name = f"plan {verified.name}" if is_plan else uniform
                found[name] = MeasuredModel(name, is_plan, model.files.total, accuracy.kl_nats)
    return tuple(found.values())
