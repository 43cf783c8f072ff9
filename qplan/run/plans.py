"""Plans by name: a file, a folder that holds one, or a budget of a run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from qplan.artifact import is_there
from qplan.errors import InputError
from qplan.run.folder import RunFolder
from qplan.run.plan import Plan
from qplan.run.plan_folder import PLAN_FILE, PlanFolder


@dataclass(frozen=True)
class FoundPlan:
    """A plan and where it came from."""

    path: Path
    plan: Plan


def find_plan(name: str, run: RunFolder | None = None) -> FoundPlan:
    """Read a plan.

    Args:
        name: a plan's file, a folder that holds ``plan.json``, or a budget of the run.
        run: the run whose budgets are looked up; None for the latest.

    Raises:
        InputError: no such plan, or one that cannot be read; names the line.
    """
    for path in (Path(name), PlanFolder(Path(name)).plan):
        if path.is_file():
            return FoundPlan(path, Plan.read(path))
    home = run or RunFolder.latest()
    path = PlanFolder(home.budget(name)).plan
    if not is_there(path):
        have = [found.folder.name for found in home.plans]
        msg = (
            f"no plan {name!r}: neither a file, nor a folder with {PLAN_FILE}, nor a budget of {home.folder}, "
            f"which has {', '.join(have) or 'none yet'}; make it with 'qplan emit --budget {name}'"
        )
        raise InputError(msg)
    return FoundPlan(path, Plan.read(path))


def newest_plan(run: RunFolder) -> FoundPlan:
    """The plan of a run that was written last.

    Raises:
        InputError: there is none, or it cannot be read; names the line.
    """
    newest = newest_plan_file(run)
    if newest is None:
        msg = f"no plan in {run.folder}; make one with 'qplan emit'"
        raise InputError(msg)
    return FoundPlan(newest, Plan.read(newest))


def newest_plan_file(run: RunFolder) -> Path | None:
    """The file of the plan that was written last, unread; None if there is none."""
    return max((found.plan for found in run.plans), key=_written, default=None)


def newest_built_plan(run: RunFolder) -> Path | None:
    """The plan of a run that was written last and has a built model; None if nothing was built."""
    return max((found.plan for found in run.plans if found.model.is_dir()), key=_written, default=None)


def run_of(path: Path) -> RunFolder:
    """The run that a plan's file lies in; the latest one if it lies elsewhere."""
    folder = path.resolve().parent
    inside = (run for run in (RunFolder(folder), RunFolder(folder.parent)) if run.is_finished)
    return next(inside, None) or RunFolder.latest()


def _written(path: Path) -> float:
    return path.stat().st_mtime
