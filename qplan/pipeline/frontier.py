"""From a sensitivity table to the whole trade-off: table, plot, JSON. Seconds, and no model is loaded."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from qplan.artifact import atomic_path, read_json, write_json, write_text
from qplan.errors import QplanError
from qplan.formats import QuantFormat
from qplan.pipeline.runs import Run
from qplan.pipeline.sizes import run_fixed_bytes
from qplan.planner.frontier import POINTS, Frontier, FrontierPoint, UniformModel, frontier
from qplan.planner.plan import Plan
from qplan.planner.planning import Rules
from qplan.report.frontier import MeasuredModel, frontier_figure, frontier_markdown
from qplan.sensitivity.table import SensitivityTable
from qplan.verify.record import Verification

KIND, SCHEMA = "qplan-frontier", 1


@dataclass(frozen=True)
class Swept:
    """What a sweep left."""

    folder: Path
    table: SensitivityTable
    frontier: Frontier
    measured: tuple[MeasuredModel, ...]


def run_frontier(run: Run, rules: Rules, points: int = POINTS) -> Swept:
    """Solve a sweep of budgets and write ``frontier.json``, ``frontier.md`` and ``frontier.png``.

    Raises:
        InputError: no analysis, too few points, or a pattern that matches nothing.
        InfeasibleError: the rules allow no plan of any size.
    """
    table = SensitivityTable.read(run.sensitivity)
    swept = frontier(table, run_fixed_bytes(run, table.model), rules=rules, points=points)
    measured = measured_models(run, table)
    folder = run.folder / "frontier"
    write_json(folder / "frontier.json", KIND, SCHEMA, _inputs(table), _body(table, rules, swept, measured))
    write_text(folder / "frontier.md", frontier_markdown(table, swept))
    with atomic_path(folder / "frontier.png") as temporary:
        frontier_figure(table, swept, measured).savefig(temporary, format="png", dpi=160)
    return Swept(folder, table, swept, measured)


def read_frontier(run: Run, table: SensitivityTable) -> Frontier | None:
    """The frontier that `run_frontier` left; None if there is none of this table, or it was solved under other rules.

    Raises:
        InputError: another file was put in its place.
        StaleArtifactError: written by a newer qplan.
    """
    path = run.folder / "frontier" / "frontier.json"
    if not path.is_file():
        return None
    found = read_json(path, KIND, SCHEMA)
    # files of before do not say whether rules restricted them
    if found["inputs"] != _inputs(table) or found["memory"] != table.goal or found.get("restricted", True):
        return None
    points = (
        FrontierPoint(**(point | {"formats": {n: QuantFormat.parse(f) for n, f in point["formats"].items()}}))
        for point in found["points"]
    )
    return Frontier(tuple(points), tuple(UniformModel(**model) for model in found["uniform"]), found["seconds"])


def measured_models(run: Run, table: SensitivityTable) -> tuple[MeasuredModel, ...]:
    """What the engine measured in this run: plans made from this table, and MNN's uniform exports."""
    found: dict[str, MeasuredModel] = {}
    for path in sorted(run.folder.glob("*/verification.json")):
        try:
            plan, verification = Plan.read(path.with_name("plan.json")), Verification.read(path)
        except QplanError:  # a folder of a newer qplan, or half edited: its plan is shown by nobody's request
            continue
        if plan.sensitivity_sha256 != table.sha256 or verification.model_sha256 != table.model.sha256:
            continue
        for model in verification.models:
            accuracy = model.accuracy(table.goal)
            if accuracy is not None:
                name = f"plan {path.parent.name}" if model.name == "plan" else model.name
                is_plan = model.name == "plan"
                found[name] = MeasuredModel(name, is_plan, model.files.total, accuracy.kl_nats)
    return tuple(found.values())


def _inputs(table: SensitivityTable) -> dict[str, str]:
    return {"model": table.model.sha256, "sensitivity": table.sha256}


def _body(
    table: SensitivityTable, rules: Rules, swept: Frontier, measured: tuple[MeasuredModel, ...]
) -> dict[str, object]:
    return {
        "model": table.model.source,
        "memory": table.goal,
        "restricted": rules.restricts,
        "seconds": swept.seconds,
        "points": [
            asdict(point) | {"formats": {name: fmt.name for name, fmt in point.formats.items()}}
            for point in swept.points
        ],
        "uniform": [asdict(model) for model in swept.uniform],
        "measured": [asdict(model) for model in measured],
    }
