"""Values that the shell completes: read from file names alone, since a shell waits for them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from qplan.calib_sets import calib_sets
from qplan.errors import QplanError
from qplan.mnn.arm.processors import ALL_WORD, PROCESSORS
from qplan.mnn.files import GRAPH_FILE
from qplan.roundings import ROUNDINGS
from qplan.run.folder import RUNS, RunFolder, finished_runs
from qplan.tensors import short_name

_BUDGETS = {
    "int8": "as large as MNN's uniform export",
    "int4": "as large as MNN's uniform export",
    "fp16": "as large as MNN's uniform export",
    "4.5bpw": "bits per weight",
    "300MB": "bytes of the files that ship",
    "60%": "of fp16",
}


def budgets(incomplete: str) -> list[tuple[str, str]]:
    """Budgets of every kind, each with what it means; after a comma, the next of several."""
    before, comma, begun = incomplete.rpartition(",")
    return [(before + comma + name, about) for name, about in _BUDGETS.items() if name.startswith(begun)]


def runs(incomplete: str) -> list[str]:
    """Run folders under ``qplan-runs/``."""
    return _starting(incomplete, (str(run.folder) for run in finished_runs()))


def plans(incomplete: str) -> list[str]:
    """Budgets of the latest run, then the plan files of all runs."""
    latest = [found.folder.name for run in finished_runs()[-1:] for found in run.plans]
    files = [str(found.plan) for folder in sorted(RUNS.glob("*/")) for found in RunFolder(folder).plans]
    return _starting(incomplete, [*latest, *files])


def tensors(incomplete: str) -> list[str]:
    """Short names of the latest plan's tensors, as patterns understand them."""
    from qplan.run.plan import tensor_names  # noqa: PLC0415 - for this key press alone
    from qplan.run.plans import newest_plan_file  # noqa: PLC0415

    try:
        newest = newest_plan_file(RunFolder.latest())
        names = () if newest is None else tensor_names(newest)
    except QplanError:
        return []  # the command reports a broken plan, not a key press
    return _starting(incomplete, map(short_name, names))


def models(incomplete: str) -> list[str]:
    """Folders here and below that hold a Hugging Face model, and folders on the way to one."""
    return _folders(incomplete, holding="config.json")


def mnn_folders(incomplete: str) -> list[str]:
    """Folders here and below that hold an MNN model, and folders on the way to one."""
    return _folders(incomplete, holding=GRAPH_FILE)


def _folders(incomplete: str, *, holding: str) -> list[str]:
    typed = Path(incomplete)
    parent = typed if incomplete.endswith("/") or not incomplete else typed.parent
    folders = (path for path in sorted(parent.glob("*/")) if not path.name.startswith("."))
    return _starting(incomplete, (str(path) if (path / holding).is_file() else f"{path}/" for path in folders))


def calibrations(incomplete: str) -> list[str]:
    """Calibration sets that come with qplan."""
    return _starting(incomplete, calib_sets())


def roundings(incomplete: str) -> list[str]:
    """Ways to choose integers."""
    return _starting(incomplete, ROUNDINGS)


def targets(incomplete: str) -> list[str]:
    """Targets whose costs are known."""
    from qplan.cost.target import target_names  # noqa: PLC0415 - for this key press alone

    return _starting(incomplete, target_names())


def processors(incomplete: str) -> list[str]:
    """ARM processors that can be emulated, and the word for the usual ones; after a comma, the next of several."""
    before, comma, begun = incomplete.rpartition(",")
    return [before + comma + name for name in (ALL_WORD, *PROCESSORS) if name.startswith(begun)]


def _starting(incomplete: str, found: Iterable[str]) -> list[str]:
    return [value for value in found if value.startswith(incomplete)]
