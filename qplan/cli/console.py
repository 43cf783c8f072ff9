"""What commands print: progress while they work, results when they end."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

err = Console(stderr=True, highlight=False)
"""Progress and messages: standard error, so that results can be piped."""

out = Console(highlight=False)
"""Results: standard output."""


def say(message: str) -> None:
    """Tell what is being done."""
    err.print(f"[dim]·[/dim] {message}", markup=True)


@contextmanager
def progress_bar(label: str) -> Iterator[Callable[[int, int], None]]:
    """Yield a function that shows ``completed`` of ``total`` with the time left: a bar, or lines in a log file."""
    if not err.is_terminal:
        yield _lines(label)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=err) as bar:
        task = bar.add_task(label, total=None)
        yield lambda completed, total: bar.update(task, completed=completed, total=total)


def _lines(label: str) -> Callable[[int, int], None]:
    """Print a line every tenth of the way."""
    began, shown, expected = time.monotonic(), -1, 0

    def tell(completed: int, total: int) -> None:
        nonlocal began, shown, expected
        if total != expected:  # the next stage
            began, shown, expected = time.monotonic(), -1, total
        tenth = 10 * completed // max(1, total)
        if tenth > shown:
            shown = tenth
            spent = time.monotonic() - began
            left = f", about {spent * (total - completed) / completed:.0f} s left" if completed else ""
            err.print(f"{label}: {completed} of {total}, {spent:.0f} s{left}", markup=False)

    return tell
