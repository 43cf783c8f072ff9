"""Analyses of one model at several efforts, and the plans of each judged by the same measurement."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

import qplan.demo
from qplan.calibration import load_text, tokenize
from qplan.cost.file_bytes import estimate_fixed
from qplan.errors import InfeasibleError
from qplan.folding.analyzed import load_analyzed
from qplan.formats import DEFAULT_FORMATS, Formats, QuantFormat
from qplan.jobs.analyze import run_analyze
from qplan.jobs.options import AnalyzeOptions
from qplan.model.load import load_model
from qplan.planner.budget import Budget
from qplan.planner.planning import make_plan
from qplan.quantize import Int8Activations
from qplan.quantize.run_rounder import run_rounder
from qplan.run.calibration import CalibrationSet
from qplan.run.folder import RunFolder
from qplan.run.plan import Plan
from qplan.run.table import SensitivityTable
from qplan.sensitivity.joint import joint_losses
from qplan.sensitivity.metrics import TokenStats
from qplan.settings import Effort, Mode

DEMO = Path(qplan.demo.__file__).parent
CALIB, TEXT = "python-stdlib", str(DEMO / "heldout.txt")
JUDGED = 32
"""Sequences that plans are judged on."""

WAYS: dict[str, tuple[Effort, Mode | None]] = {
    "quick": ("quick", None),
    "default": ("default", None),
    "measured": ("default", "measured"),
}
"""What is compared, the yardstick last: effort and mode of each analysis."""


@dataclass(frozen=True)
class Study:
    """A model, and the folder that keeps its analyses."""

    model: str
    folder: Path
    formats: Sequence[QuantFormat] = DEFAULT_FORMATS

    @property
    def name(self) -> str:
        """The model's name."""
        return Path(self.model).name

    def run(self, way: str) -> RunFolder:
        """The folder of an analysis."""
        return RunFolder(self.folder / f"{self.name}-{way}")

    def table(self, way: str) -> SensitivityTable:
        """The table of one of `WAYS`, made once."""
        run, (effort, mode) = self.run(way), WAYS[way]
        if not run.sensitivity.is_file():
            options = AnalyzeOptions(
                model=self.model, calib=CALIB, effort=effort, mode=mode, formats=tuple(self.formats), jobs=1
            )
            run_analyze(options, run, print, _no_progress)
        return SensitivityTable.read(run.sensitivity)

    def tokens(self) -> torch.Tensor:
        """Tokens that plans are judged on, int64 ``[JUDGED, seq_len]``: no analysis sees their text."""
        loaded, length = load_model(self.model), AnalyzeOptions.seq_len
        text = load_text(TEXT, loaded.tokenizer)
        limits = {"context": loaded.card.context, "vocabulary": loaded.card.vocabulary}
        return torch.from_numpy(tokenize(text, loaded.tokenizer, samples=JUDGED, seq_len=length, seed=0, **limits).tokens)

    def judge(self, way: str, plans: dict[str, Formats]) -> dict[str, TokenStats]:
        """Whole models with a way's folds and integers, on `tokens`."""
        run, table = self.run(way), self.table(way)
        loaded = load_analyzed(run, table.model, _quiet).loaded
        rounder = run_rounder(run, loaded, CalibrationSet.read(run.calibration), table.conditions.rounding)
        activations = Int8Activations("prefill", table.conditions.dynamic_option)
        return joint_losses(
            loaded, self.tokens(), plans, table.goal, activations, engine_embedding=True, rounder=rounder
        )


def plans_of(table: SensitivityTable, yardstick: SensitivityTable, budgets: Sequence[str]) -> Iterator[tuple[str, Plan]]:
    """The plans of a table by budget, within the bytes that the budget means to another table."""
    theirs = estimate_fixed(yardstick.model)
    for text in budgets:
        limit = Budget.of_bytes(Budget.parse(text).resolve(yardstick.model, theirs).limit_bytes)
        try:
            yield text, make_plan(table, limit, estimate_fixed(table.model))
        except InfeasibleError as error:
            print(f"{text}: {error}")


def _quiet(_text: str) -> None:
    """Drop a line."""


def _no_progress(_done: int, _total: int) -> None:
    """Drop the progress of an analysis."""
