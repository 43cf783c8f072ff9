"""What commands print: results on standard output, progress and messages on standard error, or one JSON object."""

from __future__ import annotations

import json
import math
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from enum import StrEnum
from io import TextIOWrapper
from typing import Any, TextIO

from rich.console import Console, ConsoleOptions, RenderableType
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.segment import Segment
from rich.text import Text

from qplan.jobs.progress import LINE_S, Pace, WorkLines, WorkProgress
from qplan.report.literal import visible


class Terminal(Console):
    """A console to which every ``str`` is data: markup, emoji codes and control codes in it are shown, never obeyed.

    Only a rich ``Text`` brings a style.
    """

    def __init__(self, **settings: Any) -> None:  # noqa: ANN401 - rich's own
        """Take rich's settings, but for those that would make more of a ``str``."""
        super().__init__(markup=False, emoji=False, highlight=False, **settings)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterator[Segment]:
        """Render with control characters escaped; all that is printed passes here."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(visible(segment.text), segment.style)

    def on_broken_pipe(self) -> None:
        """End as a program does that nobody reads any more: rich would give the exit code of a bug."""
        self.quiet = True
        silence()
        raise SystemExit(BROKEN_PIPE)


BROKEN_PIPE = 128 + 13
"""Exit code of a program whose reader went away, as of one that SIGPIPE ended."""


def silence() -> None:
    """Send what is still to be written to nowhere: Python flushes when it exits, and would complain."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError, OSError, ValueError):
            os.dup2(nowhere, stream.fileno())


_WIDTHS = range(20, 10_001)
"""Columns that a terminal may have: narrower ones hold no sentence, wider ones only fill memory."""


def _forget_odd_width() -> None:
    """Let rich ask the terminal where COLUMNS is no width: it takes 0, which some shells export, as it stands."""
    text = os.environ.get("COLUMNS", "")
    if not (text.isascii() and text.isdigit() and len(text) < 9 and int(text) in _WIDTHS):
        os.environ.pop("COLUMNS", None)


_forget_odd_width()

err = Terminal(stderr=True)
"""Progress and messages: standard error, so that results can be piped."""

out = Terminal()
"""Results for people: standard output."""

alarm = Terminal(stderr=True)
"""Errors: never quiet."""


class Mode(StrEnum):
    """Who reads what a command prints."""

    people = "people"
    quiet = "quiet"
    """Errors only; scripts read the exit code."""
    json = "json"
    """Standard output holds one JSON object and nothing else."""


_answer: dict[str, object] = {}
"""What the running command has answered so far."""


def let_children_print_utf8() -> None:
    """Have child processes print UTF-8, whatever the terminal takes: that is how it is read."""
    os.environ["PYTHONIOENCODING"] = "utf-8:replace"


def begin() -> None:
    """Forget the mode and the answer of an earlier command in this process.

    Characters that an output's encoding lacks are escaped from here on: they are no reason to end.
    """
    _forget_odd_width()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    _answer.clear()
    use(Mode.people)


def start(command: str) -> None:
    """Name the command that runs."""
    _answer["command"] = command


def running() -> str:
    """Name of the command that runs; empty before one is known."""
    return str(_answer.get("command", ""))


def use(mode: Mode) -> None:
    """Switch to a mode."""
    out.quiet = mode is not Mode.people
    err.quiet = mode is Mode.quiet
    if mode is Mode.quiet:
        # read by huggingface_hub when it is imported, which commands do after this; it warns when transformers
        # wants its bars back
        os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
        warnings.simplefilter("ignore")


def answer(**document: object) -> None:
    """Add keys to the object that ``--json`` prints when the command ends; docs/reference/json.md describes them."""
    _answer.update(document)


def answer_as_json(code: int, error: Mapping[str, object] | None) -> str:
    """The object of ``--json``: first the keys that all commands have, then the command's own."""
    command = _answer.get("command")
    document = {"command": command, "exit_code": code, "error": error} | _answer
    text = to_json(document)
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:  # data must not become question marks
        return to_json(document, ascii_only=True)
    return text


def to_json(document: Mapping[str, object], *, ascii_only: bool = False) -> str:
    """One JSON object; numbers that are not finite become null, which JSON can hold."""
    return json.dumps(_finite(document), indent=1, ensure_ascii=ascii_only, allow_nan=False, default=str)


def _finite(value: object) -> object:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_finite(item) for item in value]
    return value


def say(message: str) -> None:
    """Print a progress line, which is wrapped only in a terminal."""
    err.print(Text.assemble(("·", "dim"), f" {message}"), soft_wrap=not err.is_terminal)


def remark(message: str) -> None:
    """Print a note on the results."""
    err.print(f"note: {message}", soft_wrap=not err.is_terminal)


def error(message: str) -> None:
    """Print an error, in any mode."""
    alarm.print(Text.assemble(("error:", "bold red"), f" {message}"), soft_wrap=True)


@contextmanager
def remarked(kind: type[Warning]) -> Iterator[None]:
    """Print warnings of one kind as remarks, in one line and each once; others as Python does."""
    shown = warnings.showwarning
    told: set[str] = set()

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        if not issubclass(category, kind):
            shown(message, category, filename, lineno, file, line)
        elif str(message) not in told:
            told.add(str(message))
            remark(str(message))

    warnings.showwarning = show
    try:
        yield
    finally:
        warnings.showwarning = shown


@contextmanager
def progress_bar(label: str, unit: str) -> Iterator[Callable[[int, int], None]]:
    """Yield a function that shows ``completed`` of ``total`` with the time left: a bar, or lines in a log file.

    Args:
        label: what is done.
        unit: what is counted, in the plural.
    """
    if not err.is_terminal:
        yield _lines(label, unit)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        TextColumn("{task.fields[counted]}"),
        TimeElapsedColumn(),
        TextColumn("{task.fields[left]}"),
    )
    # transient: the lines about what was done stay on the screen, the bars do not
    with Progress(*columns, console=err, transient=True, refresh_per_second=4) as bar:
        task, pace = bar.add_task(label, total=None, counted="", left=""), Pace(time.monotonic)

        def tell(completed: int, total: int) -> None:
            pace.see(completed, total)
            counted = f"{completed} of {total} {unit}"
            bar.update(task, completed=completed, total=total, counted=counted, left=pace.left())

        yield tell


@contextmanager
def work_bar(label: str) -> Iterator[WorkProgress]:
    """The same for work that is counted in expected milliseconds, see `qplan.jobs.stages`: in percent of all of it.

    The stage that runs stands beside the label.

    Where nothing is expected of a command, its stages count their parts, and each has its own percent and time left.
    """
    pace = Pace(time.monotonic)
    if not err.is_terminal:
        yield WorkLines(label, pace, _line)
        return
    columns = (
        BarColumn(bar_width=30),
        TextColumn("{task.percentage:>3.0f} % of all"),
        TimeElapsedColumn(),
        TextColumn("{task.fields[left]}"),
    )
    with _Described(*columns, console=err, transient=True, refresh_per_second=4) as bar:
        yield WorkBar(label, pace, bar)


class _Described(Progress):
    """Bars with what is done in a line above: beside them, a terminal of 80 columns would cut both short."""

    def get_renderables(self) -> Iterator[RenderableType]:
        """Each task's description, and its bar."""
        for task in self.tasks:
            yield Text(task.description, overflow="ellipsis", no_wrap=True)
            yield self.make_tasks_table([task])


class WorkBar(WorkProgress):
    """As a bar in a terminal."""

    def __init__(self, label: str, pace: Pace, bar: Progress) -> None:
        """Add a task to a bar."""
        super().__init__(label, pace)
        self._bar, self._task = bar, bar.add_task(label, total=None, left="")

    def __call__(self, completed: int, total: int, /) -> None:
        """Move the bar."""
        super().__call__(completed, total)
        self._bar.update(self._task, completed=completed, total=total, left=self.pace.left())

    def stage(self, name: str) -> None:
        """Write the stage before the bar."""
        super().stage(name)
        self._bar.update(self._task, description=self.described)


def _line(message: str) -> None:
    """Print a line of progress as it stands, however long."""
    err.print(message, soft_wrap=True)


def _lines(label: str, unit: str) -> Callable[[int, int], None]:
    """Print a line every tenth of the way, and none for a stage that is over at once."""
    began, shown, told, expected = time.monotonic(), 0, 0.0, 0

    def tell(completed: int, total: int) -> None:
        nonlocal began, shown, told, expected
        now = time.monotonic()
        if total != expected:  # the next stage
            began, shown, told, expected = now, 0, now, total
        tenth = 10 * completed // max(1, total)
        if tenth > shown and now - told >= LINE_S:
            shown, told = tenth, now
            spent = now - began
            left = f", about {spent * (total - completed) / completed:.0f} s left" if completed < total else ""
            err.print(f"{label}: {completed} of {total} {unit}, {spent:.0f} s{left}", soft_wrap=True)

    return tell
