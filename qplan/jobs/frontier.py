"""From a sensitivity table to its frontier as table, plot and JSON. Takes seconds and loads no model."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path

from qplan.artifact import atomic_path, write_text
from qplan.choosing.measured import measured_models
from qplan.choosing.parity import promised
from qplan.choosing.sizes import run_fixed_bytes
from qplan.planner.frontier import frontier, sweep_of
from qplan.planner.rules import Rules
from qplan.report.frontier import frontier_figure, frontier_markdown
from qplan.run.folder import RunFolder
from qplan.run.frontier import PLOT_FILE, POINTS, TABLE_FILE, Frontier, MeasuredModel, write_frontier
from qplan.run.table import SensitivityTable


@dataclass(frozen=True)
class Swept:
    """Result of a sweep."""

    files: tuple[Path, ...]
    """Paths of the plot, the Markdown table and the JSON."""
    table: SensitivityTable
    frontier: Frontier
    measured: tuple[MeasuredModel, ...]


def run_frontier(run: RunFolder, rules: Rules, points: int = POINTS) -> Swept:
    """Solve a sweep of budgets and write ``frontier.json``, ``frontier.md`` and ``frontier.png``.

    Raises:
        InputError: there is no analysis, there are too few points, or a pattern matches nothing.
        InfeasibleError: the rules allow no plan of any size.
    """
    table = SensitivityTable.read(run.sensitivity)
    fixed = run_fixed_bytes(run, table.model)
    limits = promised(rules, table, run)
    swept = frontier(table, fixed, rules=rules, points=points, promised=limits)
    measured = measured_models(run, table)
    folder = run.frontier
    numbers = write_frontier(folder, table, swept, sweep_of(table, rules, fixed, promised=limits), measured)
    text, plot = folder / TABLE_FILE, folder / PLOT_FILE
    write_text(text, frontier_markdown(table, swept))
    with atomic_path(plot) as temporary, warnings.catch_warnings():
        # a name in a script that the font lacks is drawn as boxes
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        frontier_figure(table, swept, measured).savefig(temporary, format="png", dpi=160)
    return Swept((plot, text, numbers), table, swept, measured)
