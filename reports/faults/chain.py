"""A command that is hit again and again, each time where it was not hit before, and goes on until it ends in peace.

It runs in forked processes, which send the signal to themselves: at a change of the run folder, while a child process
is at work, or in the midst of a stage.
"""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qplan.cli.main import main
from tests.support.ended_early import Ender, forked

CODES = {signal.SIGKILL: -9, signal.SIGTERM: 143}

Row = dict[str, Any]

_TURN = 4
"""Every so manieth signal is SIGTERM, the others SIGKILL."""

_WORKS_S = 0.3
"""How long a stage or a child process is at work before the signal."""

_UNFINISHED = re.compile(r"\..*\.qplan-\d+-|^\.lock$")


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
    kind_of: Callable[[str, str], str | None]
    """What is done to which kind of file, from an event and a path; None where it is not to be hit."""
    results: Callable[[], Mapping[str, str]]
    """Hashes of what must be the same in the end."""
    reads: Path
    """A file that it opens while it loads."""
    midst: bool = False
    """Whether to hit stages in their midst."""

    @property
    def told(self) -> Path:
        """What the last command printed."""
        return self.home / "told.txt"

    @property
    def _noted(self) -> Path:
        return self.home / "hit.txt"

    def do(self) -> None:
        """Run the command in peace.

        Raises:
            RuntimeError: it did not end well.
        """
        if forked(lambda: main(self.line), self.told):
            msg = f"{' '.join(self.line)}: undisturbed, it ended ill: {self.told.read_text(encoding='utf-8')[-1000:]}"
            raise RuntimeError(msg)

    def hits(self, expected: Mapping[str, str], what: Mapping[str, object]) -> Iterator[Row]:
        """Run it until it ends in peace, hit at every kind of place once; a row for each command.

        Args:
            expected: results of an undisturbed one.
            what: the command, for the rows.
        """
        hit: set[str] = set()
        while True:
            number = signal.SIGTERM if len(hit) % _TURN == _TURN - 1 else signal.SIGKILL
            self._noted.unlink(missing_ok=True)
            begin = time.monotonic()
            code = self._hit(hit, number)
            told = self.told.read_text(encoding="utf-8")
            row: Row = {"part": "streamed", **what, "code": code, "seconds": round(time.monotonic() - begin, 1)}
            row |= {"streamed": "stay on the disk" in told, "leftovers": self._leftovers()}
            if not self._noted.exists():
                found = self.results()
                differs = sorted(name for name in {*found, *expected} if found.get(name) != expected.get(name))
                yield (
                    row
                    | {"stage": "to the end", "signal": "", "expected_code": 0, "differs": differs}
                    | ({"told": told[-1000:]} if code else {})
                )
                return
            place = self._noted.read_text(encoding="utf-8")
            hit.add(place)
            stage, _, change = place.partition(": ")
            wrong = {"told": told[-1000:]} if code != CODES[number] else {}
            yield (
                row | {"stage": stage, "change": change, "signal": number.name, "expected_code": CODES[number]} | wrong
            )

    def _hit(self, hit: set[str], number: signal.Signals) -> int:
        def new(change: str) -> bool:
            place = f"{self.stage_of(self.told.read_text(encoding='utf-8'))}: {change}"
            if place in hit or self._noted.exists():
                return False
            self._noted.write_text(place, encoding="utf-8")
            return True

        def asked(event: str, path: Path) -> signal.Signals | None:
            kind = self.kind_of(event, str(path))
            if kind is None or not new(kind):
                return None
            if event != "starts":
                return number
            threading.Timer(_WORKS_S, os.kill, (os.getpid(), number)).start()
            return None

        def watch() -> None:
            while not new("in its midst"):
                time.sleep(0.02)
            time.sleep(_WORKS_S)
            os.kill(os.getpid(), number)

        def job() -> None:
            if self.midst:
                threading.Thread(target=watch, daemon=True).start()
            main(self.line)

        return forked(job, self.told, Ender(self.run, asked, self.reads))

    def _leftovers(self) -> list[str]:
        """Unfinished files, and locks."""
        found = [path for path in self.run.rglob("*") if _UNFINISHED.search(path.name)]
        return sorted(str(path.relative_to(self.run)) for path in found)
