"""Tasks of the harness, found and loaded before a model is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from qplan.errors import InputError

if TYPE_CHECKING:
    from lm_eval.tasks import TaskManager


def load_tasks(names: Sequence[str], include_path: Path | None) -> tuple[TaskManager, list[str]]:
    """The harness's index of tasks, and those of it that were asked for, whose data are there.

    Args:
        names: tasks, groups or tags, with ``*`` for any characters.
        include_path: folder of further task files; None for the harness's own alone.

    Raises:
        InputError: no such folder or task, or a task whose data cannot be had.
    """
    if include_path is not None and not include_path.is_dir():
        msg = f"--include-path {include_path} is no folder; give one that holds task files (.yaml)"
        raise InputError(msg)
    from lm_eval.tasks import TaskManager  # noqa: PLC0415 - optional, and takes seconds

    manager = None
    if include_path is not None:
        manager = TaskManager(include_path=str(include_path), include_defaults=False)
    if manager is None or not all(manager.match_tasks([name]) for name in names):
        # thousands of files: not for tasks that are all in the folder
        manager = TaskManager(include_path=None if include_path is None else str(include_path))
    found: list[str] = []
    for name in names:
        matching = [task for task in manager.match_tasks([name]) if task not in found]
        if not manager.match_tasks([name]):
            where = "" if include_path is None else f" nor under {include_path}"
            msg = f"--tasks {name!r}: no such task in lm-evaluation-harness{where}; see: lm-eval ls tasks"
            raise InputError(msg)
        found += matching
    try:
        manager.load(found)
    except Exception as error:  # a task file may fail in any way: its data, its own code
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        msg = (
            f"--tasks {','.join(names)}: a task cannot be loaded: {first}. Data of most tasks come from the Hugging "
            "Face hub: run this once where the hub can be reached, or give tasks on local data with --include-path"
        )
        raise InputError(msg) from error
    return manager, found
