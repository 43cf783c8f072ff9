"""What a call that takes minutes tells while it works: one line in a notebook that changes, lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from qplan.cost.work import spell_time
from qplan.jobs.progress import Pace, WorkLines, WorkProgress
from qplan.settings import Say

REFRESH_S = 0.5
"""Least time between two changes of a notebook's line."""


def in_notebook() -> bool:
    """Whether this runs in a kernel of Jupyter, which shows what is displayed and changes it later."""
    shell = sys.modules.get("IPython")
    found = None if shell is None else shell.get_ipython()
    return found is not None and hasattr(found, "kernel")


def tell(line: str) -> None:
    """Print a line: below the cell in a notebook, on standard error elsewhere."""
    print(line, file=None if in_notebook() else sys.stderr, flush=True)


@contextmanager
def bar(label: str) -> Iterator[WorkProgress]:
    """Show how much of a job is done.

    Args:
        label: what is done.
    """
    if not in_notebook():
        yield WorkLines(label, Pace(time.monotonic), tell)
        return
    shown = WorkCell(label, Pace(time.monotonic), _displayed())
    yield shown
    shown.end()


class WorkCell(WorkProgress):
    """As a line below a notebook's cell, which stays with the time that it took."""

    def __init__(self, label: str, pace: Pace, change: Say) -> None:
        """Show the label; ``change`` takes each line in the place of the one before."""
        super().__init__(label, pace)
        self._change, self._changed_s = change, 0.0
        self._show(label)

    def __call__(self, completed: int, total: int, /) -> None:
        """Change the line if it is time to."""
        super().__call__(completed, total)
        if time.monotonic() - self._changed_s >= REFRESH_S:
            self._show(self.told(completed, total))

    def stage(self, name: str) -> None:
        """Show the stage at once: some have no parts for a long time."""
        super().stage(name)
        self._show(self.described)

    def end(self) -> None:
        """Leave what it took."""
        self._show(f"{self.label}: {spell_time(time.monotonic() - self._began)}")

    def _show(self, line: str) -> None:
        self._changed_s = time.monotonic()
        self._change(line)


def _displayed() -> Callable[[str], None]:
    """A line that is displayed now, and what changes it."""
    from IPython import display  # noqa: PLC0415 - only in a notebook

    shown: Any = display.display  # its types say nothing of the handle
    handle = shown({"text/plain": ""}, raw=True, display_id=True)

    def change(line: str) -> None:
        handle.update({"text/plain": line}, raw=True)

    return change
