"""The report of a plan, written by `emit`, and rewritten from a run's files in any language without building."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from qplan.artifact import is_there, sha256_file
from qplan.choosing.parity import promised
from qplan.choosing.planned import PlannedOn, planned_on
from qplan.errors import StaleArtifactError
from qplan.planner.frontier import frontier, sweep_of
from qplan.report.page import write_report
from qplan.report.words import Language, words_of
from qplan.run.folder import RunFolder
from qplan.run.frontier import POINTS, Frontier, find_frontier, write_frontier
from qplan.run.plan_folder import PlanFolder
from qplan.run.plans import FoundPlan, find_plan, newest_plan
from qplan.run.provenance import Provenance
from qplan.run.verification import Verification
from qplan.settings import Say


@dataclass(frozen=True)
class Reported:
    """Paths of the written reports."""

    page: Path
    """The HTML."""
    short: Path
    """The Markdown."""


def report_plan(
    planned: PlannedOn,
    verification: Verification | None,
    *,
    provenance: Provenance,
    language: Language,
    say: Say,
) -> Reported:
    """Write ``report.html`` and ``report.md``, and ``report.json``, from which `run_report` can rewrite them.

    Args:
        planned: the plan, and what it was made from.
        verification: measurements of the built model; None if none was built.
        provenance: command lines and versions.
        language: language of both reports.
        say: called with a line about each step.
    """
    folder, plan = planned.path.parent, planned.plan
    swept = plan_frontier(planned, say)
    provenance.write(PlanFolder(folder), plan)
    words = words_of(language)
    return Reported(
        *write_report(folder, planned.measured, plan, verification, provenance, frontier=swept, words=words)
    )


def run_report(name: str | None, run: RunFolder | None, language: Language, say: Say) -> Reported:
    """Rewrite a plan's reports from the files of its run, without loading or building a model.

    Args:
        name: a plan's file, its folder or a budget of the run; None for the newest plan.
        run: the run; None for the plan's own, or the latest if no plan is named.
        language: language of both reports.
        say: called with a line about each step.

    Raises:
        InputError: there is no such plan or run.
        StaleArtifactError: the plan, its verification and the run's losses do not belong together.
    """
    found = find_plan(name, run) if name is not None else newest_plan(run or RunFolder.latest())
    planned, folder = planned_on(found, run), PlanFolder(found.path.parent)
    verification, provenance = _verification_of(found, folder), Provenance.read(folder)
    return report_plan(planned, verification, provenance=provenance, language=language, say=say)


def plan_frontier(planned: PlannedOn, say: Say) -> Frontier:
    """The frontier under a plan's rules, for the report.

    It is read from the run or the plan's folder if stored there for the same losses, rules and files. Otherwise it is
    solved, at as many budgets as ``qplan frontier`` takes by default, and stored in the plan's folder.
    """
    fixed, rules, folder = planned.fixed, planned.rules, planned.path.parent
    limits = promised(rules, planned.losses, planned.run)
    block_activations = planned.plan.dynamic_option == 2
    sweep = sweep_of(planned.losses, rules, fixed, block_activations=block_activations, promised=limits)
    found = find_frontier((planned.run.frontier, folder), sweep)
    if found is not None:
        return found
    say(f"other budgets: solving {POINTS}")
    swept = frontier(planned.table, fixed, rules=rules, promised=limits)
    write_frontier(folder, planned.losses, swept, sweep)
    return swept


def _verification_of(found: FoundPlan, folder: PlanFolder) -> Verification | None:
    path = folder.verification
    if not is_there(path):
        return None
    verification = Verification.read(path)
    if verification.plan_sha256 != sha256_file(found.path):
        msg = f"{path} belongs to a different plan than {found.path}; build it with 'qplan emit --plan {found.path}'"
        raise StaleArtifactError(msg)
    return verification
