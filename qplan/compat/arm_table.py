"""The table of formats on ARM processors: what MNN's aarch64 engine makes of each, under emulation."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from qplan.artifact import body_of, read_json, write_json
from qplan.formats import QuantFormat
from qplan.run.decode import decode_artifact

PACKAGED_ARM = Path(__file__).with_name("arm.json")
"""The table that ships with qplan."""

KIND, SCHEMA = "qplan-arm-formats", 1

PATHS = ("prefill", "decode")


@dataclass(frozen=True)
class ArmRow:
    """One format of all linears of a tiny model, on one processor, memory low."""

    format: QuantFormat
    tied: bool
    """Whether it is the format of a tied head alone, beside linears of 8 bits."""
    processor: str
    results: dict[str, str] = field(default_factory=dict)
    """By `setting`: ``ok`` or ``wrong`` and the relative error of the logits, ``NaN``, ``crash`` and the signal,
    ``hang`` or ``refused``."""

    @property
    def place(self) -> tuple[str, bool, str]:
        """Key of the row: a table holds one for each."""
        return (self.format.name, self.tied, self.processor)

    @property
    def faults(self) -> dict[str, str]:
        """The settings in which it is not right."""
        return {key: result for key, result in self.results.items() if not is_right(result)}


def setting(precision: str, dynamic_option: int, path: str) -> str:
    """Key of a result: ``low 0 prefill``."""
    return f"{precision} {dynamic_option} {path}"


def is_right(result: str) -> bool:
    """Whether a result says that the engine computes the format."""
    return result.startswith("ok ")


@dataclass(frozen=True)
class ArmTable:
    """Every format that was measured on ARM processors."""

    engine: str
    """Version of MNN."""
    emulator: str
    date: str
    """Of the last measurement, UTC."""
    rows: tuple[ArmRow, ...]

    @classmethod
    def read(cls, path: Path = PACKAGED_ARM) -> ArmTable:
        """Read a table.

        Raises:
            InputError: no such file, or not a table.
            StaleArtifactError: written by a newer qplan.
        """
        remedy = "make it again with 'qplan compat measure --arm'"
        return decode_artifact(cls, body_of(read_json(path, KIND, SCHEMA, remedy=remedy)), path, remedy)

    def write(self, path: Path) -> None:
        """Write it atomically."""
        rows = [
            {"format": row.format.name, "tied": row.tied, "processor": row.processor, "results": row.results}
            for row in self.rows
        ]
        body = {"engine": self.engine, "emulator": self.emulator, "date": self.date, "rows": rows}
        write_json(path, KIND, SCHEMA, {}, body)

    def merged(self, newer: ArmTable) -> ArmTable:
        """This table with a newer one's rows, which replace its own of the same formats and processors."""
        by_place = {row.place: row for row in (*self.rows, *newer.rows)}
        return ArmTable(newer.engine, newer.emulator, newer.date, tuple(by_place.values()))

    @property
    def processors(self) -> tuple[str, ...]:
        """Names, in the order of measurement."""
        return tuple(dict.fromkeys(row.processor for row in self.rows))

    def of(self, fmt: QuantFormat, processor: str, *, tied: bool = False) -> ArmRow | None:
        """What was measured of a format; None if nothing was."""
        return next((row for row in self.rows if row.place == (fmt.name, tied, processor)), None)


def worst(results: Iterable[str]) -> str:
    """The result that a user would least like to meet; of the same kind, the larger error."""
    ranks = ("crash", "hang", "refused", "NaN", "wrong", "ok")
    return min(results, key=lambda found: (ranks.index(found.split()[0]), -_error(found)), default="")


def _error(result: str) -> float:
    kind, _, rest = result.partition(" ")
    return float(rest) if kind in ("ok", "wrong") else 0.0
