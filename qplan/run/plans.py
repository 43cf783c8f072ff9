"""Plans by name: a file, a folder that holds one, or a budget of a run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from qplan.errors import InputError
from qplan.run.folder import RunFolder
from qplan.run.plan import Plan

PLAN_FILE = "plan.json"


@dataclass(frozen=True)
class FoundPlan:
    """A plan and where it came from."""

    path: Path
    plan: Plan


def find_plan(name: str, run: RunFolder | None = None) -> FoundPlan:
    """Read a plan.

    Args:
        name: a plan's file, a folder that holds ``plan.json``, or a budget of the run.
        run: where budgets are looked up; None for the latest.

    Raises:
        InputError: no such plan, or one that cannot be read; names the line.
    """
    for path in (Path(name), Path(name) / PLAN_FILE):
        if path.is_file():
            return FoundPlan(path, Plan.read(path))
    home = run or RunFolder.latest()
    path = home.budget(name) / PLAN_FILE
    if not path.is_file():
        have = sorted(found.parent.name for found in home.folder.glob(f"*/{PLAN_FILE}"))
        msg = (
            f"no plan {name!r}: neither a file, nor a folder with {PLAN_FILE}, nor a budget of {home.folder}, "
            f"which has {', '.join(have) or 'none yet'}; make it with 'qplan emit --budget {name}'"
        )
        raise InputError(msg)
    return FoundPlan(path, Plan.read(path))


def run_of(path: Path) -> RunFolder:
    """The run that a plan's file lies in; the latest one if it lies elsewhere."""
    folder = path.resolve().parent
    inside = (run for run in (RunFolder(folder), RunFolder(folder.parent)) if run.sensitivity.is_file())
    return next(inside, None) or RunFolder.latest()
