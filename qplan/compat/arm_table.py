"""The table of formats on ARM processors: what MNN's aarch64 engine makes of each, under emulation."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from qplan.artifact import body_of, read_json, write_json
from qplan.compat.table import today
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

    @classmethod
    def empty(cls, engine: str, emulator: str, *rows: ArmRow) -> ArmTable:
        """A table of today."""
        return cls(engine, emulator, today(), rows)

    @property
    def rows_json(self) -> list[dict[str, object]]:
        """Rows as JSON holds them."""
        return [
            {"format": row.format.name, "tied": row.tied, "processor": row.processor, "results": row.results}
            for row in self.rows
        ]

    def write(self, path: Path) -> None:
        """Write it atomically."""
        body = {"engine": self.engine, "emulator": self.emulator, "date": self.date, "rows": self.rows_json}
        write_json(path, KIND, SCHEMA, {}, body)

    def merged(self, newer: ArmTable) -> ArmTable:
        """This table with a newer one's rows, which replace its own of the same formats and processors.

        A table is of one engine: rows of another are left out.
        """
        own = self.rows if self.engine == newer.engine else ()
        by_place = {row.place: row for row in (*own, *newer.rows)}
        return ArmTable(newer.engine, newer.emulator, newer.date, tuple(by_place.values()))

    def summary(self) -> Iterator[tuple[tuple[str, ...], tuple[str, ...]]]:
        """Formats that do alike on all processors, and what they do: ``ok``, or what goes wrong and where."""
        by_format: dict[tuple[QuantFormat, bool], dict[str, str]] = {}
        for row in self.rows:
            by_format.setdefault((row.format, row.tied), {})[row.processor] = told(row)
        alike: dict[tuple[str, ...], list[tuple[QuantFormat, bool]]] = {}
        for (fmt, tied), found in by_format.items():
            shown = tuple(found.get(name, "") for name in self.processors)
            alike.setdefault(shown, []).append((fmt, tied))
        for shown, formats in alike.items():
            yield _named(formats), shown

    @property
    def processors(self) -> tuple[str, ...]:
        """Names, in the order of measurement."""
        return tuple(dict.fromkeys(row.processor for row in self.rows))

    def of(self, fmt: QuantFormat, processor: str, *, tied: bool = False) -> ArmRow | None:
        """What was measured of a format; None if nothing was."""
        return next((row for row in self.rows if row.place == (fmt.name, tied, processor)), None)


def _named(formats: Sequence[tuple[QuantFormat, bool]]) -> tuple[str, ...]:
    """Many formats in few words: widths that come in the same blocks together."""
    blocks: dict[tuple[bool, str], list[tuple[int, bool]]] = {}
    for fmt, tied in formats:
        blocks.setdefault((tied, f"{'fp' if fmt.is_float else 'int'}{fmt.bits}"), []).append((fmt.block, fmt.symmetric))
    together: dict[tuple[bool, frozenset[tuple[int, bool]]], list[str]] = {}
    for (tied, width), found in blocks.items():
        together.setdefault((tied, frozenset(found)), []).append(width)
    names = []
    for (tied, places), widths in together.items():
        name = f"{'tied head ' if tied else ''}{', '.join(widths)}"
        plain, symmetric = ({block for block, sym in places if sym is wanted} for wanted in (False, True))
        if widths != ["fp16"]:
            also = " with and without zero points" if symmetric == plain else ""
            also = f"; symmetric {_in_blocks(symmetric)}" if symmetric and not also else also
            name += f" {_in_blocks(plain)}{also}" if plain else f" symmetric {_in_blocks(symmetric)}"
        names.append(name)
    return tuple(names)


def _in_blocks(blocks: Collection[int]) -> str:
    some = [str(block) for block in sorted(blocks) if block]
    parts = (["by whole rows"] if 0 in blocks else []) + ([f"in blocks of {', '.join(some)}"] if some else [])
    return " and ".join(parts)


def told(row: ArmRow) -> str:
    """What a format does on a processor: ``ok``, or every fault with the settings that it is in."""
    if not row.faults:
        return "ok"
    kinds: dict[str, list[str]] = {}
    for key, result in row.faults.items():
        kinds.setdefault(result, []).append(key)
    if len(kinds) == 1 and len(row.faults) == len(row.results):
        return next(iter(kinds))
    return "; ".join(f"{result} ({_settings(keys)})" for result, keys in kinds.items())


def _settings(keys: Sequence[str]) -> str:
    """Settings in words, without those that make no difference."""
    parts = [sorted({key.split()[place] for key in keys}) for place in range(3)]
    if len(keys) != len(parts[0]) * len(parts[1]) * len(parts[2]):
        return ", ".join(keys)
    precision, option, path = parts
    words = [f"precision {precision[0]}"] if len(precision) == 1 else []
    words += [f"option {option[0]}"] if len(option) == 1 else []
    words += path if len(path) == 1 else []
    return ", ".join(words)
