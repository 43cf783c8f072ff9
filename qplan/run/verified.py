"""Plans of a run that were built and measured, and not changed since."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from qplan.artifact import sha256_file
from qplan.errors import DamagedArtifactError, QplanError
from qplan.run.damage import tell_damaged
from qplan.run.folder import RunFolder
from qplan.run.plan import Plan
from qplan.run.verification import Verification


@dataclass(frozen=True)
class VerifiedPlan:
    """A plan with what the engine measured of its model."""

    name: str
    """Name of its folder."""
    plan: Plan
    verification: Verification


def verified_plans(run: RunFolder) -> Iterator[VerifiedPlan]:
    """Plans of a run with what the engine measured of this very plan, by name; those of earlier analyses included.

    Skips folders that a newer qplan wrote, files that cannot be read, and plans that were made or edited after their
    model was built.
    """
    for folder in run.verified:
        try:
            plan, verification = Plan.read(folder.plan), Verification.read(folder.verification)
        except DamagedArtifactError as error:
            tell_damaged(f"left out: {error}")
            continue
        except QplanError:  # the caller asked for all, not for this one
            continue
        if verification.plan_sha256 == sha256_file(folder.plan):
            yield VerifiedPlan(folder.folder.name, plan, verification)
