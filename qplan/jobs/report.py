"""The report of a plan: made by `emit`, and made again from what a run holds, in any language and without building."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from qplan.artifact import read_json, sha256_file, write_json
from qplan.choosing.retarget import computable, retarget_table
from qplan.cost.file_bytes import FixedBytes
from qplan.errors import InputError, StaleArtifactError
from qplan.jobs.frontier import FRONTIER_FILE, Sweep, find_frontier, write_frontier
from qplan.mnn.engines import EngineTarget, EngineVersion
from qplan.planner.frontier import frontier
from qplan.planner.rules import Rules
from qplan.planner.validate import validate_plan
from qplan.report.page import Provenance, write_report
from qplan.report.words import Language, words_of
from qplan.run.folder import RunFolder
from qplan.run.frontier import Frontier
from qplan.run.plan import KIND as PLAN_KIND
from qplan.run.plan import SCHEMA as PLAN_SCHEMA
from qplan.run.plan import Plan
from qplan.run.plans import PLAN_FILE, FoundPlan, find_plan, run_of
from qplan.run.table import SensitivityTable
from qplan.run.verification import Verification
from qplan.settings import Say

PROVENANCE_FILE = "report.json"
KIND, SCHEMA = "qplan-report", 1

COARSE_POINTS = 16
"""Budgets of a frontier that is solved for a report: enough for a slider, in seconds."""

_FOR_ENGINE = re.compile(r"-mnn-(\d+\.\d+\.\d+)$")
"""How `emit --engine` ends a folder's name."""


@dataclass(frozen=True)
class Reported:
    """What was written."""

    page: Path
    short: Path
    """The Markdown."""


def report_plan(
    run: RunFolder,
    folder: Path,
    table: SensitivityTable,
    plan: Plan,
    verification: Verification | None,
    *,
    provenance: Provenance,
    language: Language,
    say: Say,
) -> Reported:
    """Write ``report.html`` and ``report.md``, and ``report.json``, from which `run_report` makes them again.

    Args:
        run: where a frontier may be stored already.
        folder: of the plan.
        table: what the plan was made from.
        plan: what was chosen.
        verification: None if nothing was built.
        provenance: command lines and versions.
        language: of both reports.
        say: told what is being done.
    """
    swept = plan_frontier(run, folder, table, plan, say)
    inputs = {"model": plan.model_sha256, "sensitivity": plan.sensitivity_sha256}
    body = {"commands": list(provenance.commands), "machine": provenance.machine}
    write_json(folder / PROVENANCE_FILE, KIND, SCHEMA, inputs, body)
    return Reported(
        *write_report(folder, table, plan, verification, provenance, frontier=swept, words=words_of(language))
    )


def run_report(name: str | None, run: RunFolder | None, language: Language, say: Say) -> Reported:
    """Write a plan's reports again from what its run holds; no model is loaded, nothing is built.

    Args:
        name: a plan's file, its folder or a budget of the run; None for the newest plan.
        run: None for the plan's own, else the latest.
        language: of both reports.
        say: told what is being done.

    Raises:
        InputError: no such plan or run.
        StaleArtifactError: the plan, its verification and the run's losses do not belong together.
    """
    found = find_plan(name, run) if name is not None else newest_plan(run or RunFolder.latest())
    home, folder = run or run_of(found.path), found.path.parent
    table = _table_of(found, home)
    verification = _verification_of(found)
    return report_plan(
        home, folder, table, found.plan, verification, provenance=_provenance_of(found), language=language, say=say
    )


def newest_plan(run: RunFolder) -> FoundPlan:
    """The plan of a run that was written last.

    Raises:
        InputError: there is none.
    """
    plans = sorted(run.folder.glob(f"*/{PLAN_FILE}"), key=lambda path: path.stat().st_mtime)
    if not plans:
        msg = f"no plan in {run.folder}; make one with 'qplan emit'"
        raise InputError(msg)
    return FoundPlan(plans[-1], Plan.read(plans[-1]))


def plan_frontier(run: RunFolder, folder: Path, table: SensitivityTable, plan: Plan, say: Say) -> Frontier:
    """Plans at other budgets under a plan's rules.

    The frontier that the run or the folder stores, if it is of the same losses, rules and files; else a coarse one,
    which is solved and stored in the folder.
    """
    files, rules = plan.files, Rules.of(plan)
    other = files.weight - sum(tensor.bytes for tensor in plan.tensors)
    fixed = FixedBytes(other, files.embedding, files.graph, exact=True)
    sweep = Sweep.of(table, rules, fixed, block_activations=plan.dynamic_option == 2)
    found = find_frontier((run.frontier, folder), sweep)
    if found is not None:
        return found
    say(f"other budgets: solving {COARSE_POINTS}")
    usable = computable(table) if plan.dynamic_option == 2 else table
    swept = frontier(usable, fixed, rules=rules, points=COARSE_POINTS)
    write_frontier(folder / FRONTIER_FILE, table, swept, sweep)
    return swept


def _table_of(found: FoundPlan, run: RunFolder) -> SensitivityTable:
    """The losses that a plan was made from, with the scales of the engine that its folder is named after."""
    table = SensitivityTable.read(run.sensitivity)
    engine = _FOR_ENGINE.search(found.path.parent.name)
    if engine is not None:
        table = retarget_table(table, EngineTarget.of(EngineVersion.parse(engine[1])))
    validate_plan(found.plan, table.model, found.path)
    if table.sha256 != found.plan.sensitivity_sha256:
        msg = (
            f"{found.path} was made from other losses than {run.sensitivity}; name its run with --run, or make the "
            "plan again with 'qplan emit'"
        )
        raise StaleArtifactError(msg)
    return table


def _verification_of(found: FoundPlan) -> Verification | None:
    path = found.path.with_name("verification.json")
    if not path.is_file():
        return None
    verification = Verification.read(path)
    if verification.plan_sha256 != sha256_file(found.path):
        msg = f"{path} is of another plan than {found.path}; build it with 'qplan emit --plan {found.path}'"
        raise StaleArtifactError(msg)
    return verification


def _provenance_of(found: FoundPlan) -> Provenance:
    """What the first report knew; of a plan from before ``report.json`` the versions that made the plan."""
    path = found.path.with_name(PROVENANCE_FILE)
    if not path.is_file():
        return Provenance(versions=read_json(found.path, PLAN_KIND, PLAN_SCHEMA)["versions"])
    stored = read_json(path, KIND, SCHEMA)
    return Provenance(tuple(stored["commands"]), stored["versions"], stored["machine"])
