"""How much of a job's work is done, and when the rest will be: what bars, lines and notebooks show."""

from __future__ import annotations

from collections.abc import Callable

from qplan.cost.work import spell_time
from qplan.settings import Say

_SHORTEST_S, _LEAST_SHARE = 0.5, 0.01
"""Least time left that is told, and least share of the work that it is told from: a slow start would make hours."""

LINE_S, QUIET_S = 5.0, 60.0
"""Least time between two progress lines, where there is no terminal for a bar, and most while work gets done."""


class Pace:
    """The time left, by the speed so far; what was done before an interruption is no work of this time."""

    _FASTEST = 20_000.0
    """Units per second beyond which they were done before: twenty times as many as are expected."""

    def __init__(self, clock: Callable[[], float]) -> None:
        """Start to watch."""
        self.clock = clock
        self._last = clock()
        self._seen = self._total = 0
        self.spent_s, self._worked = 0.0, 0

    def see(self, completed: int, total: int) -> None:
        """See how much is done."""
        now = self.clock()
        if total != self._total or completed < self._seen:  # the next of stages that count for themselves
            self.spent_s, self._worked, self._seen, self._total = 0.0, 0, 0, total
        took, done = now - self._last, completed - self._seen
        if done <= self._FASTEST * took:
            self._worked += done
            self.spent_s += took
        self._last, self._seen = now, completed

    @property
    def left_s(self) -> float | None:
        """Seconds left; None if nothing was done yet."""
        return self.spent_s / self._worked * (self._total - self._seen) if self._worked else None

    def left(self) -> str:
        """The same in words; empty if it is hardly known, or none is left."""
        left = self.left_s if self._worked >= _LEAST_SHARE * self._total else None
        return f"about {spell_time(left)} left" if left and left >= _SHORTEST_S and self._seen < self._total else ""


class WorkProgress:
    """Shows how much of all work is done, and which stage of it runs."""

    def __init__(self, label: str, pace: Pace) -> None:
        """Take what is done, and what watches its speed."""
        self.label, self.pace, self.name = label, pace, ""
        self._began = pace.clock()

    def __call__(self, completed: int, total: int, /) -> None:
        """Show it."""
        self.pace.see(completed, total)

    def stage(self, name: str) -> None:
        """Take the name of the stage that runs."""
        self.name = name

    def told(self, completed: int, total: int) -> str:
        """A line about it all, with the time that it took and that is left."""
        share = f"{100 * completed / max(1, total):.0f} % of all"
        words = [f"{self.described}: {share}", spell_time(self.pace.clock() - self._began), self.pace.left()]
        return ", ".join(filter(None, words))

    @property
    def described(self) -> str:
        """What is done, with the stage that runs."""
        return f"{self.label}, {self.name}" if self.name else self.label


class WorkLines(WorkProgress):
    """As lines in a log file: every twentieth of the way and when a stage begins, but no more often than `LINE_S`.

    And at least every `QUIET_S`: a stage may take much longer than was expected, and a silent log looks dead.
    """

    def __init__(self, label: str, pace: Pace, tell: Say) -> None:
        """Begin to count the time; ``tell`` takes each line."""
        super().__init__(label, pace)
        self._tell = tell
        self._told_s = self._began
        self._told_name = ""
        self._shown = 0

    def __call__(self, completed: int, total: int, /) -> None:
        """Print a line if it is time for one."""
        super().__call__(completed, total)
        now, step = self.pace.clock(), 20 * completed // max(1, total)
        if step < self._shown:
            self._shown = 0
        is_news, silent_s = step > self._shown or self.name != self._told_name, now - self._told_s
        if silent_s >= (LINE_S if is_news else QUIET_S):
            self._shown, self._told_s, self._told_name = step, now, self.name
            self._tell(self.told(completed, total))
