"""The compatibility table: what every engine did with models of every exporter, converter and architecture, when."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from qplan.artifact import read_json, write_json
from qplan.errors import InputError
from qplan.mnn.engine.probe import Outcome
from qplan.mnn.engines import EngineVersion

PACKAGED = Path(__file__).with_name("compat.json")
"""The table that ships with qplan."""

KIND, SCHEMA = "qplan-compat", 1

_WORST: tuple[Outcome, ...] = ("crash", "hang", "refused", "wrong", "export fails", "ok")


@dataclass(frozen=True)
class Cell:
    """One model on one engine."""

    model: str
    """Name of the specimen."""
    exporter: str
    """``llmexport 0.0.5``, or ``qplan`` for a build."""
    options: str
    """Options that it was given."""
    converter: str
    """Version of MNN whose converter wrote the graph."""
    engine: str
    memory: str
    """The engine's memory setting."""
    outcome: Outcome
    error: float | None
    """Relative error of the logits against torch with the same stored weights, the larger of prefill and decode."""
    detail: str
    """The signal, or the engine's last words."""
    date: str

    @property
    def place(self) -> tuple[str, ...]:
        """Key of the cell: a table holds one for each."""
        return (self.model, self.exporter, self.options, self.converter, self.engine, self.memory)


@dataclass(frozen=True)
class ArchitectureCell:
    """One architecture, exported at fp16, on one engine, against the Hugging Face model in FP32."""

    architecture: str
    exporter: str
    transformers: str
    engine: str
    tokens: int
    """Length of the sequence: windows and scaled rotations only show beyond a length."""
    outcome: Outcome
    error: float | None
    detail: str
    date: str

    @property
    def place(self) -> tuple[str, str, int]:
        """Key of the cell: a table holds one for each."""
        return (self.architecture, self.exporter, self.tokens)


@dataclass(frozen=True)
class CompatTable:
    """Everything that was measured on one machine."""

    platform: str
    """Machine, e.g. ``x86_64``."""
    cells: tuple[Cell, ...]
    architectures: tuple[ArchitectureCell, ...]

    @classmethod
    def read(cls, path: Path = PACKAGED) -> CompatTable:
        """Read a table.

        Raises:
            InputError: no such file, or not a table.
            StaleArtifactError: written by a newer qplan.
        """
        found = read_json(path, KIND, SCHEMA)
        return cls(
            found["platform"],
            tuple(Cell(**cell) for cell in found["cells"]),
            tuple(ArchitectureCell(**cell) for cell in found["architectures"]),
        )

    def write(self, path: Path) -> None:
        """Write it atomically."""
        body = {
            "platform": self.platform,
            "cells": [asdict(cell) for cell in self.cells],
            "architectures": [asdict(cell) for cell in self.architectures],
        }
        write_json(path, KIND, SCHEMA, {}, body)

    @property
    def engines(self) -> tuple[str, ...]:
        """Versions, oldest first."""
        return tuple(sorted({cell.engine for cell in self.cells}, key=EngineVersion.parse))

    def rows(self) -> Mapping[tuple[str, str, str], Mapping[str, Cell]]:
        """The worst cell of every engine over models and memory settings, by exporter, options and converter."""
        found: dict[tuple[str, str, str], dict[str, list[Cell]]] = {}
        for cell in self.cells:
            key = (cell.exporter, cell.options, cell.converter)
            found.setdefault(key, {}).setdefault(cell.engine, []).append(cell)
        return {key: {engine: worst(cells) for engine, cells in by.items()} for key, by in found.items()}

    def merged(
        self, cells: Iterable[Cell], architectures: Iterable[ArchitectureCell], order: Sequence[str]
    ) -> CompatTable:
        """This table with new measurements, which replace its own of the same models, options and engines.

        Args:
            cells: measurements of engines, from this machine.
            architectures: measurements of architectures, from this machine.
            order: names of architectures, in the order to list them.
        """
        by_cell = {cell.place: cell for cell in (*self.cells, *cells)}
        by_architecture = {cell.place: cell for cell in (*self.architectures, *architectures)}
        listed = sorted(by_architecture.values(), key=lambda cell: (order.index(cell.architecture), cell.tokens))
        return CompatTable(platform.machine(), tuple(by_cell.values()), tuple(listed))


def today() -> str:
    """The date of a measurement, UTC."""
    return datetime.now(UTC).date().isoformat()


def shown_error(error: float | None) -> float | None:
    """A relative error with the digits that the table keeps."""
    return None if error is None else float(f"{error:.3g}")


def worst(cells: Iterable[Cell]) -> Cell:
    """The cell that a user would least like to meet.

    Raises:
        InputError: no cells.
    """
    ranked = sorted(cells, key=lambda cell: (_WORST.index(cell.outcome), -(cell.error or 0.0)))
    if not ranked:
        msg = "no cells to compare"
        raise InputError(msg)
    return ranked[0]
