"""Plans of a run that were built and measured as they are."""

from __future__ import annotations

from collections.abc import Iterator

from qplan.artifact import sha256_file
from qplan.errors import QplanError
from qplan.run.folder import RunFolder
from qplan.run.plan import Plan
from qplan.run.table import SensitivityTable
from qplan.run.verification import Verification


def verified_plans(run: RunFolder, table: SensitivityTable) -> Iterator[tuple[str, Plan, Verification]]:
    """Plans made from a table, with what the engine measured, by the name of their folder.

    Passed over are folders of a newer qplan, half edited ones, those of other analyses, and plans that were made or
    edited after their model was built.
    """
    for path in sorted(run.folder.glob("*/verification.json")):
        source = path.with_name("plan.json")
        try:
            plan, verification = Plan.read(source), Verification.read(path)
        except QplanError:  # nobody asked for this one
            continue
        ours = plan.sensitivity_sha256 == table.sha256 and verification.model_sha256 == table.model.sha256
        if ours and verification.plan_sha256 == sha256_file(source):
            yield path.parent.name, plan, verification
