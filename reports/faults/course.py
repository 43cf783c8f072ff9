"""Where a command can be hit, from one that was not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True)
class Course:
    """What an undisturbed command comes to."""

    places: Sequence[str]
    """Every kind of change, once, in order: its stage, a colon, the change."""
    seconds: Mapping[str, float]
    """How long each stage takes."""

    @classmethod
    def of(cls, noted: Sequence[tuple[str, str, float]]) -> Course:
        """From stages, changes (none where a stage begins) and times."""
        begun = [(stage, at) for stage, change, at in noted if not change]
        seconds = {stage: end - at for (stage, at), (_, end) in pairwise(begun)}
        return cls(list(dict.fromkeys(f"{stage}: {change}" for stage, change, _ in noted if change)), seconds)

    def spread(self, per_stage: int | None) -> frozenset[str]:
        """So many of every stage's changes, evenly spread; None for all."""
        found: set[str] = set()
        stage_of = {place: place.partition(": ")[0] for place in self.places}
        for stage in set(stage_of.values()):
            own = [place for place in self.places if stage_of[place] == stage]
            most = len(own) if per_stage is None else min(per_stage, len(own))
            found |= {own[(2 * place + 1) * len(own) // (2 * most)] for place in range(most)}
        return frozenset(found)
