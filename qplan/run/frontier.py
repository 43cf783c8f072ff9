"""The best plans at all sizes, as ``qplan frontier`` and reports store them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from qplan.artifact import MAKE_AGAIN, decoding, is_there, read_json, write_json
from qplan.cost.footprint import Footprint
from qplan.errors import DamagedArtifactError
from qplan.formats import QuantFormat
from qplan.run.damage import tell_damaged
from qplan.run.decode import decode_artifact

if TYPE_CHECKING:  # the command line takes its default from here, and waits for no pyarrow
    from qplan.run.table import SensitivityTable

KIND, SCHEMA = "qplan-frontier", 1

FRONTIER_FILE, TABLE_FILE, PLOT_FILE = "frontier.json", "frontier.md", "frontier.png"
"""Files in a run's frontier folder; a plan's folder has the first one if the plan has rules of its own."""

POINTS = 24
"""Budgets that a frontier is solved at by default."""


@dataclass(frozen=True, kw_only=True)
class FrontierPoint:
    """The best plan of one size."""

    total_bytes: int
    """Of all files of the plan; at most the budget that it was solved for."""
    bpw: float
    """Bits of weight and embedding files per parameter."""
    predicted_nats: float
    """Sum of single-tensor losses."""
    joint_nats: float
    """Predicted loss of the whole model, see `SensitivityTable.predict_joint`."""
    gap: float
    """Relative gap that the solver left; 0 is proved optimal."""
    formats: dict[str, QuantFormat]
    """Format by Hugging Face name."""
    knee: bool
    """Whether the curve of log loss over bytes bends most here: below it bytes buy much, above it little."""
    footprint: Footprint | None = None
    """RAM and relative times on the target; None in files of earlier versions."""


@dataclass(frozen=True)
class UniformModel:
    """One format for all tensors, the head at 8 bits, with the same rounding as the plans."""

    name: str
    """e.g. ``int4``."""
    total_bytes: int
    joint_nats: float
    """Predicted loss of the whole model."""
    footprint: Footprint | None = None
    """As of a plan."""


@dataclass(frozen=True)
class NamedPlan:
    """The plan of a budget that names a uniform export, which limits RAM and times too."""

    name: str
    """e.g. ``int4``."""
    point: FrontierPoint


@dataclass(frozen=True)
class Frontier:
    """A sweep of budgets."""

    points: tuple[FrontierPoint, ...]
    """From the smallest plan to the least loss, bytes ascending, no plan twice."""
    uniform: tuple[UniformModel, ...]
    """Every uniform format whose losses are known, bytes ascending."""
    seconds: float
    """Wall time of all solves."""
    named: tuple[NamedPlan, ...] = ()
    """Plans of ``int8``, ``int4`` and so on under parity ``all``, bytes ascending; the points limit files alone."""


@dataclass(frozen=True)
class MeasuredModel:
    """A built model on the engine."""

    name: str
    is_plan: bool
    """Whether it is a plan; otherwise it is a uniform model, rounded as MNN's exporter does."""
    total_bytes: int
    kl_nats: float


@dataclass(frozen=True)
class Sweep:
    """What a frontier was solved from; compared to find out whether it belongs to a plan."""

    sensitivity_sha256: str
    rules_sha256: str
    """Hash of everything that the points depend on besides the losses; empty in files written by older versions."""


def write_frontier(
    folder: Path, table: SensitivityTable, swept: Frontier, sweep: Sweep, measured: tuple[MeasuredModel, ...] = ()
) -> Path:
    """Write ``frontier.json`` atomically.

    Args:
        folder: where to write it.
        table: the losses.
        swept: the plans.
        sweep: what they were solved from.
        measured: built models that the engine ran.

    Returns:
        The file.
    """
    path = folder / FRONTIER_FILE
    inputs = {"model": table.model.sha256, "sensitivity": table.sha256, "rules": sweep.rules_sha256}
    write_json(path, KIND, SCHEMA, inputs, _body(table, swept, measured))
    return path


def find_frontier(folders: Iterable[Path], sweep: Sweep) -> Frontier | None:
    """The first frontier of a sweep that the folders hold; None if there is none. Damaged ones are told and passed by.

    Raises:
        StaleArtifactError: written by a newer qplan.
    """
    for path in (folder / FRONTIER_FILE for folder in folders):
        if is_there(path):
            try:
                found = _kept(path, sweep)
            except DamagedArtifactError as error:
                tell_damaged(error)
                continue
            if found is not None:
                return found
    return None


def _kept(path: Path, sweep: Sweep) -> Frontier | None:
    """The frontier in a file; None if it is of another sweep.

    Raises:
        InputError: the file was damaged.
        StaleArtifactError: written by a newer qplan.
    """
    stored = read_json(path, KIND, SCHEMA, remedy=MAKE_AGAIN)
    with decoding(path, MAKE_AGAIN):
        inputs = stored["inputs"]
        if Sweep(inputs["sensitivity"], inputs.get("rules", "")) != sweep:
            return None
        body = {key: stored[key] for key in ("points", "uniform", "seconds", "named") if key in stored}
        return decode_artifact(Frontier, body, path, MAKE_AGAIN)


def _point(point: FrontierPoint) -> dict[str, object]:
    return asdict(point) | {"formats": {name: fmt.name for name, fmt in point.formats.items()}}


def _body(table: SensitivityTable, swept: Frontier, measured: tuple[MeasuredModel, ...]) -> dict[str, object]:
    return {
        "model": table.model.source,
        "memory": table.goal,
        "seconds": swept.seconds,
        "points": [_point(point) for point in swept.points],
        "named": [{"name": plan.name, "point": _point(plan.point)} for plan in swept.named],
        "uniform": [asdict(model) for model in swept.uniform],
        "measured": [asdict(model) for model in measured],
    }
