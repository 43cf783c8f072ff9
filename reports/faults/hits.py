"""A command that is hit again and again, each time where it was not hit before, and goes on until it ends in peace."""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qplan.cli.main import main
from reports.faults.chain import LOOKS_S, Chain
from reports.faults.course import Course
from tests.support.ended_early import Ender, forked

CODES = {signal.SIGKILL: -9, signal.SIGTERM: 143}

Row = dict[str, Any]

_TURN = 4
"""Every so manieth signal is SIGTERM, the others SIGKILL."""

_WORKS_S = 0.3
"""How long a child process is at work before the signal."""

_AFTER_KILLS = 8
"""Of places that only a killed command leads to, every so manieth is hit where not all are."""

_LATER = " of its time later"

_UNFINISHED = re.compile(r"\..*\.qplan-\d+-|^\.lock$")


def hits(chain: Chain, course: Course, expected: Mapping[str, str]) -> Iterator[Row]:
    """Run it until it ends in peace, hit at every kind of place once; a row for each command.

    Args:
        chain: the command.
        course: of an undisturbed one.
        expected: its results.
    """
    hit: set[str] = set()
    chain.seen.unlink(missing_ok=True)
    drawn = course.spread(chain.per_stage)
    while True:
        number = signal.SIGTERM if len(hit) % _TURN == _TURN - 1 else signal.SIGKILL
        chain.noted.unlink(missing_ok=True)
        begin = time.monotonic()
        code = _Attempt(chain, course, drawn, hit, number).run()
        told = chain.told.read_text(encoding="utf-8")
        row: Row = {"part": "streamed", "code": code, "seconds": round(time.monotonic() - begin, 1)}
        row |= {"streamed": "stay on the disk" in told, "leftovers": _leftovers(chain.run)}
        if not code or not chain.noted.exists():
            found = chain.results()
            differs = sorted(name for name in {*found, *expected} if found.get(name) != expected.get(name))
            yield (
                row
                | {"stage": "to the end", "signal": "", "expected_code": 0, "differs": differs}
                | ({"told": told[-1000:]} if code else {})
            )
            return
        place = chain.noted.read_text(encoding="utf-8")
        hit.add(place)
        stage, _, change = place.partition(": ")
        wrong = {"told": told[-1000:]} if code != CODES[number] else {}
        yield (row | {"stage": stage, "change": change, "signal": number.name, "expected_code": CODES[number]} | wrong)


def _leftovers(run: Path) -> list[str]:
    """Unfinished files, and locks."""
    found = [path for path in run.rglob("*") if _UNFINISHED.search(path.name)]
    return sorted(str(path.relative_to(run)) for path in found)


@dataclass(frozen=True)
class _Attempt:
    """A command that sends itself a signal at the first place that is to be hit."""

    chain: Chain
    course: Course
    drawn: Collection[str]
    """Places that are to be hit."""
    hit: Collection[str]
    """Those that were."""
    number: signal.Signals

    def run(self) -> int:
        """Run the command; returns its exit code."""

        def job() -> None:
            if self.chain.midst:
                threading.Thread(target=self._watch, daemon=True).start()
            main(self.chain.line)

        return forked(job, self.chain.told, Ender(self.chain.run, self._asked, self.chain.reads))

    def _asked(self, event: str, path: Path) -> signal.Signals | None:
        if not self._begun(f"{self.chain.stage()}: {self.chain.kind_of(event, str(path))}"):
            return None
        if event != "starts":
            return self.number
        threading.Timer(_WORKS_S, os.kill, (os.getpid(), self.number)).start()
        return None

    def _watch(self) -> None:
        stage, begun = "", 0.0
        while True:
            if (now := self.chain.stage()) != stage:
                stage, begun = now, time.monotonic()
            for share in self.chain.midst:
                late = time.monotonic() - begun >= share * self.course.seconds.get(stage, 0.0)
                if late and self._begun(f"{stage}: {share:.0%}{_LATER}"):
                    os.kill(os.getpid(), self.number)
            time.sleep(LOOKS_S)

    def _begun(self, place: str) -> bool:
        """Note a place that is to be hit now."""
        if place in self.hit or not self._due(place):
            return False
        try:
            with self.chain.noted.open("x", encoding="utf-8") as stream:
                stream.write(place)
        except FileExistsError:  # another is hit
            return False
        return True

    def _due(self, place: str) -> bool:
        """Whether a place is to be hit: where an undisturbed command does not come, only now and then."""
        if self.chain.per_stage is None or place in self.drawn or place.endswith(_LATER):
            return True
        if place in self.course.places:
            return False
        path = self.chain.seen
        seen = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        if place not in seen:
            with path.open("a", encoding="utf-8") as stream:
                stream.write(place + "\n")
            seen.append(place)
        return seen.index(place) % _AFTER_KILLS == 0
