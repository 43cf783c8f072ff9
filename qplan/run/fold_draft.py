"""What is known of a fold that is not decided yet: a killed analysis goes on from it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from qplan.artifact import is_there, read_json, sha256_json, versions, write_json
from qplan.errors import QplanError
from qplan.settings import Say

KIND, SCHEMA = "qplan-fold-draft", 1

_WRITE_S = 1.0
"""Longest work that a kill can cost: scales are many, and each write is of all."""


@dataclass
class FoldDraft:
    """Fitted scales and losses of candidates, on disk within a second of being found."""

    path: Path
    inputs: Mapping[str, str]
    """What they depend on."""
    scales: dict[str, list[float]] = field(default_factory=dict)
    """Factors of channels, by the name of the place."""
    losses: dict[str, dict[str, float]] = field(default_factory=dict)
    """By candidate and uniform model, as in `qplan.run.fold.FoldRecord`."""
    rounded: dict[str, str] = field(default_factory=dict)
    """Folder of the tensors that a candidate was rounded to, below `RunFolder.rounding`; none if nothing is kept."""
    _written: float = 0.0

    @classmethod
    def open(cls, path: Path, inputs: Mapping[str, str], say: Say) -> FoldDraft:
        """Go on from a file; start empty without one, and if it belongs to other inputs, versions, or is damaged."""
        if not is_there(path):
            return cls(path, inputs)
        try:
            found = read_json(path, KIND, SCHEMA)
            known = {key: found[key] for key in ("scales", "losses", "rounded")}
            sound = found["sha256"] == sha256_json(known)
        except (QplanError, KeyError, ValueError):
            sound = False
        if not sound:
            say(f"{path} is damaged: it is made again")
            return cls(path, inputs)
        if found["inputs"] != dict(inputs) or found["versions"] != versions():
            return cls(path, inputs)
        return cls(path, inputs, **known)

    def add_scale(self, site: str, scale: list[float]) -> None:
        """Keep the factors of a place."""
        self.scales[site] = scale
        if time.monotonic() - self._written >= _WRITE_S:
            self.write()

    def add_losses(self, candidate: str, losses: Mapping[str, float], rounded: Path | None) -> None:
        """Keep losses of a candidate, and the folder of its rounded tensors."""
        if rounded is not None:
            self.rounded[candidate] = rounded.name
        self.losses.setdefault(candidate, {}).update(losses)
        self.write()

    def write(self) -> None:
        """Write the file."""
        known = {"scales": self.scales, "losses": self.losses, "rounded": self.rounded}
        write_json(self.path, KIND, SCHEMA, self.inputs, known | {"sha256": sha256_json(known)})
        self._written = time.monotonic()
