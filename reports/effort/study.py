"""Analyses of one model at several efforts, and the plans of each judged by the same measurement."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch

import qplan.demo
from qplan.calibration import load_text, tokenize
from qplan.cost.file_bytes import estimate_fixed
from qplan.errors import InfeasibleError
from qplan.folding.analyzed import load_analyzed
from qplan.folding.decide import run_fold
from qplan.formats import DEFAULT_FORMATS, Formats, QuantFormat
from qplan.jobs.analyze import run_analyze
from qplan.jobs.options import FIT_TOKENS, SEQ_LEN, AnalyzeOptions, sequences_per_pass
from qplan.model.load import LoadedModel, load_model
from qplan.planner.budget import Budget
from qplan.planner.planning import make_plan
from qplan.rounding import Int8Activations
from qplan.rounding.round_all import round_all
from qplan.rounding.run_rounder import run_rounder
from qplan.run.calibration import CalibrationSet
from qplan.run.folder import RunFolder
from qplan.run.plan import Plan
from qplan.run.table import SensitivityTable
from qplan.sensitivity.analysis import Analysis, open_analysis
from qplan.sensitivity.gradient import estimate
from qplan.sensitivity.joint import joint_losses
from qplan.sensitivity.measured import measure
from qplan.sensitivity.menu import resolve_menu
from qplan.sensitivity.metrics import TokenStats

DEMO = Path(qplan.demo.__file__).parent
CALIB, TEXT = "python-stdlib", str(DEMO / "heldout.txt")

Way = Literal["quick", "default", "measured"]
"""What is compared: two efforts, and the yardstick."""

WAYS: tuple[Way, ...] = ("quick", "default", "measured")


@dataclass(frozen=True)
class Study:
    """A model, and the folder that keeps its analyses."""

    model: str
    folder: Path
    formats: Sequence[QuantFormat] = DEFAULT_FORMATS
    measured_batches: int | None = None
    """Batches of the calibration that losses are measured on; None for all."""
    calib: str = CALIB
    text: str = TEXT
    """What plans are judged on."""
    judged_sequences: int = 32

    @property
    def name(self) -> str:
        """The model's name."""
        return Path(self.model).name

    def run(self, way: Way) -> RunFolder:
        """The run folder of an analysis. The default effort goes on from the quick one, in the same folder."""
        return RunFolder(self.folder / f"{self.name}-{'measured' if way == 'measured' else 'one-pass'}")

    def table(self, way: Way) -> SensitivityTable:
        """The table of an analysis, made once; the quick one's before the default one's."""
        run, kept = self.run(way), self.folder / f"{self.name}-{way}.parquet"
        if not kept.is_file():
            if way == "measured":
                self._measure(run)
            else:
                options = AnalyzeOptions(
                    model=self.model, calib=self.calib, effort=way, formats=tuple(self.formats), jobs=1
                )
                run_analyze(options, run, print, no_progress)
            shutil.copy(run.sensitivity, kept)
        return SensitivityTable.read(kept)

    def _measure(self, run: RunFolder) -> None:
        """What `--mode measured` does, under the goal's memory setting alone: plans hang on no other loss."""
        options = AnalyzeOptions(model=self.model, calib=self.calib, mode="measured", formats=tuple(self.formats))
        loaded = load_model(self.model)
        calibration = self.tokens(loaded, self.calib, options.samples, FIT_TOKENS)
        batch_size = sequences_per_pass(loaded.card, SEQ_LEN)
        loaded, folded = run_fold(
            run,
            loaded,
            calibration,
            options.memory,
            dynamic_option=options.dynamic_option,
            rounding=options.rounding,
            batch_size=batch_size,
            jobs=1,
            device=options.device,
            say=print,
            progress=no_progress,
        )
        menu = resolve_menu(loaded.card, options.formats)[0]
        with self.rounded_whole(options, run, loaded, calibration, menu) as analysis:
            for batch in [number for number in analysis.kept.references if number >= len(analysis.batches)]:
                del analysis.kept.references[batch]
            goal = {(name, fmt.name, memory) for name, fmt, memory in analysis.entries() if memory == options.memory}
            measure(analysis, goal, progress=told)
            estimate(analysis)
            rows = [
                row
                for name, fmt, memory in analysis.entries()
                for row in analysis.rows(
                    (name, fmt.name, memory), "measured" if memory == options.memory else "gradient"
                )
            ]
            table = analysis.table("measured", rows, (folded,))
        calibration.write(run.calibration)
        table.write(run.sensitivity)

    @contextmanager
    def rounded_whole(
        self,
        options: AnalyzeOptions,
        run: RunFolder,
        loaded: LoadedModel,
        calibration: CalibrationSet,
        menu: Mapping[str, Sequence[QuantFormat]],
    ) -> Iterator[Analysis]:
        """An analysis on the batches to measure, with all formats of a menu rounded whole."""
        batch_size = sequences_per_pass(loaded.card, SEQ_LEN)
        rounder = run_rounder(run, loaded, calibration, options.rounding, menu=menu, batch_size=batch_size)
        opened = open_analysis(
            loaded,
            calibration,
            options.formats,
            options.memory,
            batch_size=batch_size,
            rounder=rounder,
            journal=run.journal,
        )
        with opened as whole:
            round_all(rounder, menu, progress=told)
            yield replace(whole, batches=whole.batches[: self.measured_batches])

    @staticmethod
    def tokens(loaded: LoadedModel, text: str, samples: int, fit_tokens: int) -> CalibrationSet:
        """A text's windows."""
        return tokenize(
            load_text(text, loaded.tokenizer),
            loaded.tokenizer,
            samples=samples,
            seq_len=SEQ_LEN,
            seed=AnalyzeOptions.seed,
            context=loaded.card.context,
            vocabulary=loaded.card.vocabulary,
            fit_tokens=fit_tokens,
        )

    def judged(self) -> torch.Tensor:
        """Tokens that plans are judged on, int64 ``[sequences, seq_len]``: no analysis sees their text."""
        return torch.from_numpy(self.tokens(load_model(self.model), self.text, self.judged_sequences, 1).tokens)

    def folded_in(self, way: Way) -> RunFolder:
        """The run that keeps the model which a way's table is about."""
        return self.run(way)

    def judge(self, way: Way, plans: dict[str, Formats]) -> dict[str, TokenStats]:
        """Whole models with a way's folds and integers, on the judged tokens."""
        run, table = self.run(way), self.table(way)
        loaded = load_analyzed(self.folded_in(way), table.model, quiet).loaded
        rounder = run_rounder(run, loaded, CalibrationSet.read(run.calibration), table.conditions.rounding)
        activations = Int8Activations("prefill", table.conditions.dynamic_option)
        return joint_losses(
            loaded, self.judged(), plans, table.goal, activations, engine_embedding=True, rounder=rounder
        )

    def plans(self, way: Way, budgets: Sequence[str]) -> Iterator[Plan]:
        """The plans of a way's table, within the bytes that budgets mean to the yardstick's model.

        A model whose tied head is folded ships another op; budgets that are feasible for only one of two models are
        left out.
        """
        table = self.table(way)
        for text in budgets:
            try:
                plan = make_plan(table, Budget.of_bytes(self.limit_bytes(text)), estimate_fixed(table.model))
            except InfeasibleError as error:
                print(f"{text}: {error}")
                continue
            yield replace(plan, budget=text)

    def limit_bytes(self, budget: str) -> int:
        """A budget in bytes."""
        theirs = self.table("measured").model
        return Budget.parse(budget).resolve(theirs, estimate_fixed(theirs)).limit_bytes


def quiet(_text: str) -> None:
    """Drop a line."""


def no_progress(_done: int, _total: int) -> None:
    """Drop the progress of an analysis."""


def told(done: int, total: int) -> None:
    """Print the progress of what takes long."""
    if done % 100 == 0:
        print(f"measured {done} of {total}", flush=True)
