"""A model, the texts it is calibrated and judged on, and qplan's analyses of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

import qplan.demo
from qplan.calibration import load_text, tokenize
from qplan.card import ModelCard
from qplan.formats import DEFAULT_FORMATS, QuantFormat, parse_formats
from qplan.jobs.analyze import run_analyze
from qplan.jobs.options import AnalyzeOptions
from qplan.model.load import LoadedModel, load_model
from qplan.rounding.rounder import Rounder
from qplan.rounding.run_rounder import run_rounder
from qplan.run.calibration import CalibrationSet
from qplan.run.folder import RunFolder
from qplan.run.table import SensitivityTable
from qplan.settings import Folding, Memory

DEMO = Path(qplan.demo.__file__).parent
MEMORIES: tuple[Memory, ...] = ("low", "normal")
SAMPLES, SEQ_LEN = 16, 256

Menu = Literal["4/8", "all"]
"""Formats that qplan may choose from: the peers', or its defaults."""

MENUS: dict[Menu, tuple[QuantFormat, ...]] = {"4/8": parse_formats("int8,int4"), "all": DEFAULT_FORMATS}

Kind = Literal["4/8", "all", "folded"]
"""What qplan may do within a peer's bytes: use the peers' formats, use all of its own, or also fold."""

KINDS: dict[Kind, tuple[Menu, Folding]] = {"4/8": ("4/8", "off"), "all": ("all", "off"), "folded": ("all", "auto")}


@dataclass(frozen=True)
class Study:
    """What one run of the benchmark works on."""

    model: str
    calib: str
    text: str
    """Text that plans are judged on."""
    judged: int
    """Number of its sequences that are used."""
    folder: Path
    """Folder of runs and tables; those that it holds are not made again."""

    @property
    def name(self) -> str:
        """The model's name."""
        return Path(self.model).name

    def load(self) -> LoadedModel:
        """The model as it is, not folded."""
        return load_model(self.model)

    def tokens(self, loaded: LoadedModel) -> torch.Tensor:
        """Tokens that plans are judged on, int64 ``[judged, seq_len]``."""
        tokenizer, card = loaded.tokenizer, loaded.card
        text = load_text(self.text, tokenizer)
        limits = {"seq_len": SEQ_LEN, "context": card.context, "vocabulary": card.vocabulary}
        return torch.from_numpy(tokenize(text, tokenizer, samples=self.judged, seed=0, **limits).tokens)

    def analyzed(self, memory: Memory, menu: Menu, fold: Folding) -> RunFolder:
        """The run of `qplan analyze`, made once."""
        run = RunFolder(self.folder / f"{self.name}-{memory}-{menu.replace('/', '')}-fold-{fold}")
        if not run.sensitivity.is_file():
            print(f"analyze: memory {memory}, formats {menu}, fold {fold}", flush=True)
            options = AnalyzeOptions(
                model=self.model,
                calib=self.calib,
                samples=SAMPLES,
                seq_len=SEQ_LEN,
                formats=MENUS[menu],
                memory=memory,
                mode="auto",
                fold=fold,
            )
            run_analyze(options, run, _quiet, _no_progress)
        return run


@dataclass(frozen=True)
class Opened:
    """A finished analysis."""

    table: SensitivityTable
    calibration: CalibrationSet
    rounder: Rounder

    @staticmethod
    def card(run: RunFolder) -> ModelCard:
        """The analyzed model."""
        return SensitivityTable.read(run.sensitivity).model

    @classmethod
    def of(cls, run: RunFolder, loaded: LoadedModel) -> Opened:
        """Read a run."""
        table, calibration = SensitivityTable.read(run.sensitivity), CalibrationSet.read(run.calibration)
        return cls(table, calibration, run_rounder(run, loaded, calibration, table.conditions.rounding))


def _quiet(_text: str) -> None:
    """Drop the lines of an analysis: there are too many for a benchmark."""


def _no_progress(_done: int, _total: int) -> None:
    """Drop its progress as well."""
