"""The run folder: where every stage leaves its artifact and finds those of the stages before."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from qplan.artifact import FULL
from qplan.errors import InputError
from qplan.run.plan_folder import PLAN_FILE, VERIFICATION_FILE, PlanFolder
from qplan.scratch import Scratch

RUNS = Path("qplan-runs")
"""Default parent of run folders, in the current directory."""

SENSITIVITY_FILE = "sensitivity.parquet"
"""The file that makes a folder a finished run."""

_OWN = ("profile", "frontier", "folded", "skeleton", "unfolded", "rounding", "baselines")
"""How folders of a run begin that hold no plan; a plan that is called like one gets another name."""


@dataclass(frozen=True)
class RunFolder:
    """One analysis and what was made from it."""

    folder: Path

    @classmethod
    def for_model(cls, source: str, root: Path = RUNS) -> RunFolder:
        """The default run folder of a model: ``qplan-runs/<last part of its name>``."""
        name = Path(source).resolve().name if Path(source).exists() else source.rstrip("/").rsplit("/", 1)[-1]
        return cls(root / _folder_name(name))

    @classmethod
    def latest(cls, root: Path = RUNS) -> RunFolder:
        """The run whose sensitivity table is the newest.

        Raises:
            InputError: there is none.
        """
        runs = finished_runs(root)
        if not runs:
            msg = f"no finished analysis under {root}/; run 'qplan analyze MODEL' first or name one with --run"
            raise InputError(msg)
        return runs[-1]

    def check_place(self) -> None:
        """Refuse a place where there can be no folder, or where nothing can be written.

        Raises:
            InputError: there is something else, or it cannot be written.
        """
        there = next(path for path in (self.folder, *self.folder.absolute().parents) if os.path.lexists(path))
        if not there.is_dir():
            what = "is" if there == self.folder else f"cannot be made: {there} is"
            msg = f"--run {self.folder} {what} no folder; name one, which is made if need be"
            raise InputError(msg)
        try:
            Scratch(beside=there / self.folder.name).remove()
        except OSError as error:
            if error.errno in FULL:  # told with the bytes that are needed, once they are known
                return
            msg = f"--run {self.folder} cannot be written: {there}: {error.strerror}; name another one"
            raise InputError(msg) from error

    def from_anywhere(self) -> RunFolder:
        """The same by its absolute path, for processes that work in other folders."""
        return RunFolder(self.folder.absolute())

    @property
    def is_finished(self) -> bool:
        """Whether an analysis left its table here."""
        return self.sensitivity.is_file()

    @property
    def calibration(self) -> Path:
        """Tokens that were used, and tokens that were held out."""
        return self.folder / "calibration.json"

    @property
    def journal(self) -> Path:
        """Measurements as they are made."""
        return self.folder / "sensitivity.journal.jsonl"

    @property
    def sensitivity(self) -> Path:
        """The finished table."""
        return self.folder / SENSITIVITY_FILE

    @property
    def took(self) -> Path:
        """Time and memory that the analysis took."""
        return self.folder / "took.json"

    @property
    def device(self) -> Path:
        """Times of this machine for every op and format."""
        return self.folder / "device.json"

    @property
    def timing(self) -> Path:
        """Work folder of a profile: the models that it builds, and the times so far; removed when it is done."""
        return self.folder / "profile"

    @property
    def frontier(self) -> Path:
        """Folder that ``qplan frontier`` writes to."""
        return self.folder / "frontier"

    @property
    def fold(self) -> Path:
        """Whether the model is folded, and the losses that decided it."""
        return self.folder / "fold.json"

    @property
    def fold_draft(self) -> Path:
        """Scales and losses as they are found, until the fold is decided."""
        return self.folder / "fold.draft.json"

    @property
    def fold_training(self) -> Path:
        """What a killed training of scales goes on from."""
        return self.folder / "fold.training.safetensors"

    @property
    def folded(self) -> Path:
        """The folded model, if folding pays off: the Hugging Face folder that all later stages use."""
        return self.folder / "folded"

    def skeleton_for(self, *, c4: bool = True, unfolded: bool = False) -> tuple[Path, Path]:
        """A skeleton, which is the exporter's fp16 model, and the record of the model and exporter that made it.

        Args:
            c4: with the fusion that crashes engines before 3.6.1.
            unfolded: export the model before folding, which uniform models are built from.
        """
        name = ("unfolded" if unfolded else "skeleton") + ("" if c4 else "-without-c4")
        return self.folder / name, self.folder / f"{name}.json"

    @property
    def rounding(self) -> Path:
        """Moments that rounding is fitted to, and the tensors it made."""
        return self.folder / "rounding"

    @property
    def between(self) -> Path:
        """What lies between layers while they are analyzed; gone afterwards."""
        return self.rounding / "between"

    @property
    def tuning(self) -> Path:
        """The same while the integers of a plan are fitted."""
        return self.rounding / "tuning"

    @property
    def baselines(self) -> Path:
        """Measurements of the uniform models, shared by all budgets."""
        return self.folder / "baselines"

    def baselines_for(self, engine: str | None) -> Path:
        """`baselines` of models that were built for another engine; None for the installed one."""
        return self.baselines if engine is None else self.folder / f"baselines-mnn-{engine}"

    def budget(self, budget: str) -> Path:
        """Folder of one budget's plan: ``int8``, ``4.5bpw``, ``60pct``."""
        name = _folder_name(budget.strip().lower().replace("%", "pct"))
        return self.folder / (f"{name}-plan" if name.startswith(_OWN) else name)

    def budget_for(self, budget: str, engine: str | None) -> Path:
        """`budget` for a plan that is made for another engine; None for the installed one."""
        return self.budget(budget if engine is None else f"{budget}-mnn-{engine}")

    @property
    def plans(self) -> tuple[PlanFolder, ...]:
        """The folders that hold a plan, by name."""
        return tuple(PlanFolder(path.parent) for path in sorted(self.folder.glob(f"*/{PLAN_FILE}")))

    @property
    def verified(self) -> tuple[PlanFolder, ...]:
        """The folders that hold measurements of a built plan, by name."""
        return tuple(PlanFolder(path.parent) for path in sorted(self.folder.glob(f"*/{VERIFICATION_FILE}")))


def _folder_name(text: str) -> str:
    """A name from outside as that of a folder: one step down, and never up."""
    name = re.sub(r"[^\w.-]+", "-", text)
    return name if name.strip(".") else f"-{name}"


def finished_runs(root: Path = RUNS) -> tuple[RunFolder, ...]:
    """Runs under a folder whose analysis is finished, the newest table last."""
    tables = sorted(root.glob(f"*/{SENSITIVITY_FILE}"), key=lambda path: path.stat().st_mtime)
    return tuple(RunFolder(path.parent) for path in tables)
