"""A command that can be hit, and what it comes to when it is not.

It runs in forked processes, which send the signal to themselves: at a change of the run folder, while a child process
is at work, or in the midst of a stage.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from qplan.cli.main import main
from reports.faults.course import Course
from tests.support.ended_early import Ender, forked

LOOKS_S = 0.02
"""How long until one looks again which stage a command came to."""


@dataclass(frozen=True)
class Chain:
    """A command, and where it can be hit."""

    home: Path
    """Folder for what it prints."""
    run: Path
    line: Sequence[str]
    """Words of the command line."""
    stage_of: Callable[[str], str]
    """The stage that it came to, from what it has printed."""
    kind_of: Callable[[str, str], str]
    """What is done to which kind of file, from an event and a path."""
    results: Callable[[], Mapping[str, str]]
    """Hashes of what must be the same in the end."""
    reads: Path
    """A file that it opens while it loads."""
    midst: Sequence[float] = ()
    """After which shares of its time, in an undisturbed command, a stage is hit whatever it does."""
    per_stage: int | None = None
    """How many of a stage's changes are hit, evenly spread; None for all."""

    @property
    def told(self) -> Path:
        """What the last command printed."""
        return self.home / "told.txt"

    @property
    def noted(self) -> Path:
        """The place where it was hit."""
        return self.home / "hit.txt"

    @property
    def seen(self) -> Path:
        """Places that an undisturbed command does not come to, in the order in which they were seen."""
        return self.home / "seen.txt"

    def do(self) -> Course:
        """Run the command in peace.

        Raises:
            RuntimeError: it did not end well.
        """
        noted = self.home / "course.jsonl"
        noted.unlink(missing_ok=True)

        def note(place: tuple[str, str]) -> None:
            with noted.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps((*place, time.monotonic())) + "\n")

        def asked(event: str, path: Path) -> None:
            note((self.stage(), self.kind_of(event, str(path))))

        def watch() -> None:
            stage = ""
            while True:
                if (now := self.stage()) != stage:
                    stage = now
                    note((stage, ""))
                time.sleep(LOOKS_S)

        def job() -> None:
            threading.Thread(target=watch, daemon=True).start()
            try:
                main(self.line)
            finally:
                note(("", ""))

        if forked(job, self.told, Ender(self.run, asked, self.reads)):
            msg = f"{' '.join(self.line)}: undisturbed, it ended ill: {self.told.read_text(encoding='utf-8')[-1000:]}"
            raise RuntimeError(msg)
        return Course.of([json.loads(line) for line in noted.read_text(encoding="utf-8").splitlines()])

    def stage(self) -> str:
        """The stage that the last command has come to."""
        return self.stage_of(self.told.read_text(encoding="utf-8"))
