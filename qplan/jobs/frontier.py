"""From a sensitivity table to the whole trade-off: table, plot, JSON. Seconds, and no model is loaded."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from qplan.artifact import atomic_path, read_json, sha256_json, write_json, write_text
from qplan.choosing.sizes import run_fixed_bytes
from qplan.cost.file_bytes import FixedBytes
from qplan.formats import QuantFormat
from qplan.planner.frontier import POINTS, frontier
from qplan.planner.rules import Rules
from qplan.report.frontier import frontier_figure, frontier_markdown
from qplan.run.folder import RunFolder
from qplan.run.frontier import Frontier, FrontierPoint, MeasuredModel, UniformModel
from qplan.run.table import SensitivityTable
from qplan.run.verified import verified_plans

KIND, SCHEMA = "qplan-frontier", 1
FRONTIER_FILE = "frontier.json"


@dataclass(frozen=True)
class Swept:
    """What a sweep left."""

    folder: Path
    table: SensitivityTable
    frontier: Frontier
    measured: tuple[MeasuredModel, ...]


@dataclass(frozen=True)
class Sweep:
    """What a frontier was solved from, so that it can be told whether it is that of a plan."""

    sensitivity_sha256: str
    rules_sha256: str
    """Of everything besides the losses that the points depend on; empty in files of before."""

    @classmethod
    def of(cls, table: SensitivityTable, rules: Rules, fixed: FixedBytes, *, block_activations: bool = False) -> Sweep:
        """Sum up a sweep.

        Args:
            table: losses.
            rules: what the user wants.
            fixed: bytes that ship whatever the plan.
            block_activations: only formats that ``dynamic_option`` 2 allows.
        """
        given = asdict(rules.given) | {
            "pins": {pattern: fmt.name for pattern, fmt in rules.pins.items()},
            "logits_bits": rules.logits_bits,
            "target": rules.target.name,
            "fixed_bytes": fixed.total,
            "block_activations": block_activations,
        }
        return cls(table.sha256, sha256_json(given))


def run_frontier(run: RunFolder, rules: Rules, points: int = POINTS) -> Swept:
    """Solve a sweep of budgets and write ``frontier.json``, ``frontier.md`` and ``frontier.png``.

    Raises:
        InputError: no analysis, too few points, or a pattern that matches nothing.
        InfeasibleError: the rules allow no plan of any size.
    """
    table = SensitivityTable.read(run.sensitivity)
    fixed = run_fixed_bytes(run, table.model)
    swept = frontier(table, fixed, rules=rules, points=points)
    measured = measured_models(run, table)
    folder = run.frontier
    write_frontier(folder / FRONTIER_FILE, table, swept, Sweep.of(table, rules, fixed), measured)
    write_text(folder / "frontier.md", frontier_markdown(table, swept))
    with atomic_path(folder / "frontier.png") as temporary:
        frontier_figure(table, swept, measured).savefig(temporary, format="png", dpi=160)
    return Swept(folder, table, swept, measured)


def measured_models(run: RunFolder, table: SensitivityTable) -> tuple[MeasuredModel, ...]:
    """What the engine measured in this run: plans made from this table, and MNN's uniform exports."""
    found: dict[str, MeasuredModel] = {}
    for folder, _, verification in verified_plans(run, table):
        for model in verification.models:
            accuracy = model.accuracy(table.goal)
            if accuracy is not None:
                is_plan = model.name == "plan"
                name = f"plan {folder}" if is_plan else model.name
                found[name] = MeasuredModel(name, is_plan, model.files.total, accuracy.kl_nats)
    return tuple(found.values())


def write_frontier(
    path: Path, table: SensitivityTable, swept: Frontier, sweep: Sweep, measured: tuple[MeasuredModel, ...] = ()
) -> None:
    """Write ``frontier.json`` atomically."""
    inputs = {"model": table.model.sha256, "sensitivity": table.sha256, "rules": sweep.rules_sha256}
    write_json(path, KIND, SCHEMA, inputs, _body(table, swept, measured))


def find_frontier(folders: Iterable[Path], sweep: Sweep) -> Frontier | None:
    """The first frontier that folders hold of a sweep; None if there is none.

    Raises:
        InputError: a ``frontier.json`` that is not a frontier.
        StaleArtifactError: written by a newer qplan.
    """
    for folder in folders:
        path = folder / FRONTIER_FILE
        if path.is_file():
            stored = read_json(path, KIND, SCHEMA)
            inputs = stored["inputs"]
            # files of before do not say which rules they were solved under
            if Sweep(inputs["sensitivity"], inputs.get("rules", "")) == sweep:
                points = tuple(_point(point) for point in stored["points"])
                return Frontier(points, tuple(UniformModel(**model) for model in stored["uniform"]), stored["seconds"])
    return None


def _point(value: dict[str, Any]) -> FrontierPoint:
    formats = {name: QuantFormat.parse(fmt) for name, fmt in value["formats"].items()}
    return FrontierPoint(**(value | {"formats": formats}))


def _body(table: SensitivityTable, swept: Frontier, measured: tuple[MeasuredModel, ...]) -> dict[str, object]:
    return {
        "model": table.model.source,
        "memory": table.goal,
        "seconds": swept.seconds,
        "points": [
            asdict(point) | {"formats": {name: fmt.name for name, fmt in point.formats.items()}}
            for point in swept.points
        ],
        "uniform": [asdict(model) for model in swept.uniform],
        "measured": [asdict(model) for model in measured],
    }
