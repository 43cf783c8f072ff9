"""qplan's losses in every mode, and the time and memory of each mode."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from qplan.formats import QuantFormat
from qplan.jobs.auto import analyze_auto
from qplan.model.load import LoadedModel
from qplan.rounding.rounder import Rounder
from qplan.run.calibration import CalibrationSet
from qplan.run.table import SensitivityTable
from qplan.sensitivity import gradient, measured
from qplan.sensitivity.analysis import open_analysis
from qplan.settings import Memory, Mode
from reports.peers.plans import MENUS, Menu, view
from reports.sensitivity.cost import Cost, cost_of

BATCH_SIZE = 4


@dataclass(frozen=True)
class Shelf:
    """Where tables are made, and kept for another run with the same inputs."""

    loaded: LoadedModel
    calibration: CalibrationSet
    folder: Path

    def table(self, mode: Mode, menu: Menu, memory: Memory, rounder: Rounder) -> SensitivityTable:
        """Losses in a mode, for plans of a menu under a memory setting.

        Estimates and measurements of single formats do not depend on the others, so that those of all formats hold
        those of fewer; what auto measures depends on them. All tables are made for memory low, the default, and hold
        memory normal beside it, which auto estimates only.
        """
        return view(self._all(mode, menu if mode == "auto" else "2-16", rounder)[0], menu, memory)

    def cost(self, mode: Mode) -> Cost:
        """Time and memory of a mode for all formats under memory low, rounded to nearest."""
        return self._all(mode, "2-16", Rounder(self.loaded))[1]

    def _all(self, mode: Mode, menu: Menu, rounder: Rounder) -> tuple[SensitivityTable, Cost]:
        inputs = f"{self.loaded.card.sha256[:8]}-{self.calibration.sha256[:8]}"
        name = f"{mode}-{menu.replace('/', '')}-low-{rounder.rounding}-{inputs}"
        path, spent = self.folder / f"{name}.parquet", self.folder / f"{name}.json"
        if not spent.is_file():
            print(f"qplan {mode}, formats {menu}, rounding {rounder.rounding}")
            made: list[SensitivityTable] = []
            cost = cost_of(lambda: made.append(self._make(mode, MENUS[menu], rounder)))
            made[-1].write(path)
            spent.write_text(json.dumps(asdict(cost)), encoding="utf-8")
        return SensitivityTable.read(path), Cost(**json.loads(spent.read_text(encoding="utf-8")))

    def _make(self, mode: Mode, formats: tuple[QuantFormat, ...], rounder: Rounder) -> SensitivityTable:
        opened = open_analysis(self.loaded, self.calibration, formats, "low", batch_size=BATCH_SIZE, rounder=rounder)
        with opened as analysis:
            if mode == "auto":
                return analyze_auto(analysis, say=print)
            if mode == "gradient":
                gradient.estimate(analysis)
            else:
                measured.measure(analysis, progress=_every(500))
            entries = [(name, fmt.name, m) for name, fmt, m in analysis.entries()]
            return analysis.table(mode, [row for entry in entries for row in analysis.rows(entry, mode)])


def _every(count: int) -> Callable[[int, int], None]:
    def tell(done: int, total: int) -> None:
        if done % count == 0:
            print(f"  {done} of {total} losses")

    return tell
