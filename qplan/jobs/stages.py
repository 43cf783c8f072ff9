"""Progress of a command over all its stages: stage k of n, and one total, weighted by the work that is expected."""

from __future__ import annotations

from dataclasses import dataclass, field

from qplan.cost.expected import Expected, ExpectedStage
from qplan.settings import Progress, Say, StageProgress

UNITS_PER_S = 1000
"""Units of the total in an expected second."""


@dataclass
class Stages:
    """Hands out the progress of one stage after the other.

    It is itself the progress of the stage that runs: what a stage calls need not know of the others.
    """

    expected: Expected | None
    """None where nothing is known: the stages are then told as they come, each with its own progress."""
    say: Say
    show: Progress
    """Called with the work done and all work, which never goes back."""
    _place: int = -1
    """The stage that runs."""
    _shown: int = field(default=0, init=False)
    _done: dict[int, int] = field(default_factory=dict, init=False)
    """Parts that the pieces of a stage have done, by its place."""

    def begin(self, name: str, detail: str = "") -> Progress:
        """Begin a stage; those before it are done, or not needed.

        Args:
            name: how the name of an expected stage begins.
            detail: what to say about it, beside its name.

        Raises:
            ValueError: it is not expected after the stage that runs.
        """
        line = detail or name
        if self.expected is not None:
            stages = self.expected.stages
            places = range(self._place + 1, len(stages))
            found = next((place for place in places if stages[place].name.startswith(name)), None)
            if found is None:
                msg = f"no stage {name!r} is expected after {stages[self._place].name if self._place >= 0 else 'none'}"
                raise ValueError(msg)
            self._place = found
            line = self._named(found, detail)
            self._tell(0.0)
        self.say(line)
        return self

    def visit(self, name: str, detail: str = "") -> Progress:
        """Go on with a stage whose work comes in pieces, in between others; the first time, it begins.

        Args:
            name: how the name of the stage begins; of one that is not expected, the line is all that is told.
            detail: what to say about this piece; empty to say nothing, unless the stage begins.

        Returns:
            Progress of this piece alone: pieces add up.
        """
        stages = self._stages
        place = next((place for place, stage in enumerate(stages) if stage.name.startswith(name)), None)
        if place is None:
            if detail:
                self.say(detail)
            return self.show if self.expected is None else _untold
        line = detail
        if place not in self._done:
            line = self._named(place, detail)
        if line:
            self.say(line)
        before = self._done.setdefault(place, 0)
        self._turn(place, before)

        def tell(done: int, total: int) -> None:
            self._done[place] = before + done
            self._turn(place, before + total)

        return tell

    def _named(self, place: int, detail: str) -> str:
        """The line that begins a stage, with its place and name, which the progress shows too."""
        stages = self._stages
        name = stages[place].name
        head = f"stage {place + 1} of {len(stages)}, {name}"
        if isinstance(self.show, StageProgress):
            self.show.stage(head)
        return head + (detail.removeprefix(name) if detail.startswith(name) else f": {detail}" if detail else "")

    @property
    def _stages(self) -> tuple[ExpectedStage, ...]:
        return () if self.expected is None else self.expected.stages

    def teller(self, name: str) -> Say:
        """Say lines that begin pieces of a stage."""

        def tell(line: str) -> None:
            self.visit(name, line)

        return tell

    def __call__(self, done: int, total: int) -> None:
        """Tell how many parts of the running stage are done."""
        if self.expected is None or self._place < 0:
            self.show(done, total)
        else:
            self._tell(done / max(1, total))

    def end(self) -> None:
        """Tell that all is done."""
        if self.expected is not None:
            self._place = len(self.expected.stages) - 1
            self._tell(1.0)

    def _turn(self, place: int, known: int) -> None:
        """Show the total with the pieces of a stage, of whose parts so many are known of."""
        if self.expected is not None:
            if place != self._place and isinstance(self.show, StageProgress):
                self.show.stage(f"stage {place + 1} of {len(self._stages)}, {self._stages[place].name}")
            self._place = place
            units = self.expected.stages[place].units
            self._tell(min(1.0, self._done[place] / max(1, known, units)))

    def _tell(self, share: float) -> None:
        """Show the total with a share of the running stage's parts."""
        if self.expected is None:
            return
        stages = self.expected.stages
        done = sum(stage.seconds for stage in stages[: self._place])
        done += stages[self._place].seconds * weighted(stages[self._place].parts, share)
        total = max(1, round(UNITS_PER_S * self.expected.seconds))
        self._shown = max(self._shown, min(total, round(UNITS_PER_S * done)))
        self.show(self._shown, total)


def _untold(_done: int, _total: int) -> None:
    """Progress of a stage that is not in the total."""


def weighted(parts: tuple[float, ...], share: float) -> float:
    """Share of the work that a share of the parts is, where parts in between count in proportion."""
    place = share * len(parts)
    whole = min(int(place), len(parts))
    rest = (place - whole) * parts[whole] if whole < len(parts) else 0.0
    return (sum(parts[:whole]) + rest) / (sum(parts) or 1.0)
