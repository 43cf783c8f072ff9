"""Times of whole models, kept as they are taken: a killed profile resumes from them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import astuple, dataclass, field
from pathlib import Path

from qplan.artifact import MAKE_AGAIN, decoding, is_there, read_json, write_json
from qplan.errors import DamagedArtifactError
from qplan.run.damage import tell_damaged

KIND, SCHEMA = "qplan-times", 1

TIMES_FILE = "times.json"
"""File in the folder where a profile works."""


@dataclass(frozen=True)
class Times:
    """Fastest times of one model."""

    prefill_ms: float
    decode_ms: float
    """Per token: the mean over positions of the fastest repeat."""


@dataclass
class TimesJournal:
    """Times by model and round, each written to disk as soon as it is taken."""

    path: Path
    inputs: Mapping[str, str]
    """What the times depend on."""
    times: dict[str, list[Times]] = field(default_factory=dict)
    """Times by the model's label, one for each round."""

    @classmethod
    def open(cls, folder: Path, inputs: Mapping[str, str]) -> TimesJournal:
        """Resume from the times that a folder keeps; start empty if there are none, or they belong to other inputs.

        Times that were damaged are told and taken again.

        Raises:
            StaleArtifactError: written by a newer qplan.
        """
        path = folder / TIMES_FILE
        if is_there(path):
            try:
                found = read_json(path, KIND, SCHEMA, remedy=MAKE_AGAIN)
                with decoding(path, MAKE_AGAIN):
                    if found["inputs"] == inputs:
                        kept = {k: [_times(pair) for pair in rounds] for k, rounds in found["times"].items()}
                        return cls(path, inputs, kept)
            except DamagedArtifactError as error:
                tell_damaged(error)
        return cls(path, inputs)

    def add(self, label: str, times: Times) -> None:
        """Add a model's times in one more round, and write the file."""
        self.times.setdefault(label, []).append(times)
        body = {label: [astuple(t) for t in rounds] for label, rounds in self.times.items()}
        write_json(self.path, KIND, SCHEMA, self.inputs, {"times": body})


def _times(pair: object) -> Times:
    match pair:
        case [int() | float() as prefill_ms, int() | float() as decode_ms]:
            return Times(prefill_ms, decode_ms)
    msg = f"expected two times in ms, found {pair!r}"
    raise ValueError(msg)
