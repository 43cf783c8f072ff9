"""A study of some layers of a model that takes too long to measure whole: all other tensors stay halves."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

from qplan.cost.file_bytes import estimate_fixed, file_bytes
from qplan.folding.analyzed import load_analyzed
from qplan.formats import FP16
from qplan.jobs.options import FIT_TOKENS, AnalyzeOptions
from qplan.run.folder import RunFolder
from qplan.run.measurement import Measurement
from qplan.run.table import SensitivityTable
from qplan.sensitivity.measured import measure
from qplan.settings import Memory
from qplan.uniform import uniform_formats
from reports.effort.study import Study, Way, quiet, told


@dataclass(frozen=True)
class LayersStudy(Study):
    """Efforts analyze the whole model; what they say of some layers is compared with measured losses.

    The yardstick has the folds of the efforts: deciding about its own takes more than all the rest.
    """

    layers: tuple[int, ...] = ()

    def folded_in(self, way: Way) -> RunFolder:  # noqa: ARG002 - the same for all
        """The run that keeps the model which a way's table is about."""
        return self.run("default")

    def table(self, way: Way) -> SensitivityTable:
        """What a way says of the layers, and of all other tensors as halves."""
        if way == "measured":
            return self._yardstick
        whole = super().table(way)
        inside = self._inside(whole)
        kept = tuple(row for row in whole.measurements if row.tensor in inside or row.format == FP16.name)
        return replace(whole, measurements=kept)

    def limit_bytes(self, budget: str) -> int:
        """A budget in bits per weight of the layers, in bytes of the whole model."""
        card = self.table("default").model
        inside = self._inside(self.table("default"))
        weights = sum(spec.weights for spec in card.tensors if spec.name in inside)
        halves = file_bytes(card, uniform_formats(card, FP16.bits), estimate_fixed(card)).total
        return halves - int(weights * (FP16.bits - float(budget.removesuffix("bpw"))) / 8)

    def _inside(self, table: SensitivityTable) -> list[str]:
        return [spec.name for spec in table.model.tensors if spec.layer in self.layers]

    @cached_property
    def _yardstick(self) -> SensitivityTable:
        """Every integer format of every tensor of the layers, rounded whole and measured under the goal's setting."""
        estimated, run = self.table("default"), self.run("measured")
        options = AnalyzeOptions(model=self.model, calib=self.calib, mode="measured", formats=tuple(self.formats))
        loaded = load_analyzed(self.folded_in("measured"), estimated.model, quiet).loaded
        calibration = self.tokens(loaded, self.calib, options.samples, FIT_TOKENS)
        run.folder.mkdir(parents=True, exist_ok=True)
        calibration.write(run.calibration)
        menu = {
            name: tuple(fmt for fmt in estimated.formats_of(name) if not fmt.is_float)
            for name in self._inside(estimated)
        }
        print(f"{self.name}: rounding and measuring {sum(map(len, menu.values()))} losses", flush=True)
        goal = {(name, fmt.name, options.memory) for name, formats in menu.items() for fmt in formats}
        with self.rounded_whole(options, run, loaded, calibration, menu) as analysis:
            measure(analysis, goal, progress=told)
            found = {
                (row.tensor, row.format, row.memory, row.batch): row
                for entry in goal
                for row in analysis.rows(entry, "measured")
            }
        rows = (row for row in estimated.measurements if row.batch < len(analysis.batches))
        return replace(estimated, joint=(), measurements=tuple(found.get(_cell(row), row) for row in rows))


def _cell(row: Measurement) -> tuple[str, str, Memory, int]:
    return row.tensor, row.format, row.memory, row.batch
