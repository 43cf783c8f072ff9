"""What reads each file of a run folder, and the answer that damage must not change unnoticed."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qplan.choosing.planned import planned_on
from qplan.errors import QplanError
from qplan.folding.analyzed import load_folded
from qplan.formats import QuantFormat
from qplan.jobs.report import _verification_of
from qplan.run.baselines import measured_once
from qplan.run.calibration import CalibrationSet
from qplan.run.fold import FoldRecord
from qplan.run.fold_draft import FoldDraft
from qplan.run.folder import RunFolder
from qplan.run.frontier import Sweep, find_frontier
from qplan.run.journal import Journal
from qplan.run.moments import StoredMoments
from qplan.run.plan_folder import PlanFolder
from qplan.run.plans import find_plan
from qplan.run.profile import DeviceProfile
from qplan.run.provenance import Provenance
from qplan.run.rounded import RoundedTensors
from qplan.run.safetensors_file import SafetensorsFile
from qplan.run.skeleton_record import SkeletonRecord
from qplan.run.table import SensitivityTable
from qplan.run.times import Times, TimesJournal
from qplan.run.token_losses import TokenLosses
from qplan.run.verification import BuiltModel, Verification

CACHES = (
    "sensitivity.journal",
    "rounding/",
    "skeleton",
    "unfolded",
    "baselines/",
    "fold.draft",
    "profile/",
    "int8/frontier",
)
"""Beginnings of the names of files that are kept to save time."""

Read = Callable[[], object]


class MadeAgain(QplanError):  # noqa: N818 - nothing is wrong
    """A damaged file was left out, which was told."""


@dataclass(frozen=True)
class Rest:
    """Entries of a file that grows line by line: a part of them is what a killed command leaves."""

    entries: dict[Any, object]

    def is_part_of(self, whole: object) -> bool:
        """Whether all of them are entries of another file."""
        return isinstance(whole, Rest) and self.entries.items() <= whole.entries.items()


def readers(home: Path) -> dict[str, Read]:
    """By name of the file, what reads it; of many alike, one."""
    run, plan = RunFolder(home), PlanFolder(home / "int8")
    _drafts(run)
    found: dict[str, Read] = {
        "sensitivity.parquet": lambda: SensitivityTable.read(run.sensitivity).sha256,
        "sensitivity.journal.jsonl": _journal(run),
        "calibration.json": lambda: CalibrationSet.read(run.calibration).sha256,
        "fold.json": lambda: FoldRecord.read(run.fold),
        "fold.draft.json": lambda: _draft(run),
        "device.json": lambda: DeviceProfile.read(run.device),
        "profile/times.json": lambda: TimesJournal.open(run.timing, {"model": "m"}).times,
        "int8/plan.json": lambda: _plan(run, plan),
        "int8/verification.json": lambda: Verification.read(plan.verification),
        "int8/token-losses.json": lambda: _text(TokenLosses.read(plan.token_losses)),
        "int8/report.json": lambda: Provenance.read(plan),
        "int8/frontier.json": _frontier(plan.folder),
        "baselines/int8.json": _baseline(run),
    }
    found |= {f"folded/{path.name}": lambda: _folded(run) for path in sorted(run.folded.iterdir())}
    for name in ("skeleton", "unfolded"):
        record = home / f"{name}.json"
        files = sorted(path.name for path in (home / name).iterdir())
        for file in (f"{name}.json", *(f"{name}/{file}" for file in files)):
            found[file] = lambda record=record: SkeletonRecord.kept(record)  # type: ignore[misc]
    for folder in sorted(run.rounding.iterdir()):
        found |= _moments(home, folder) if (folder / "index.json").is_file() else _rounded(home, folder)
    return found


def _journal(run: RunFolder) -> Read:
    fingerprint = json.loads(run.journal.read_text(encoding="utf-8").splitlines()[0])["fingerprint"]

    def read() -> object:
        with Journal(run.journal, fingerprint) as journal:
            return Rest(dict(journal.measurements) | dict(journal.references))

    return read


def _plan(run: RunFolder, plan: PlanFolder) -> object:
    """As `qplan report` reads it: a plan that was changed is not the one that was verified."""
    found = find_plan(str(plan.plan), run)
    _verification_of(found, plan)
    return planned_on(found, run).recounted()


def _frontier(folder: Path) -> Read:
    inputs = json.loads((folder / "frontier.json").read_text(encoding="utf-8"))["inputs"]
    sweep = Sweep(inputs["sensitivity"], inputs["rules"])
    return lambda: find_frontier([folder], sweep)


def _baseline(run: RunFolder) -> Read:
    path = run.baselines / "int8.json"
    inputs = json.loads(path.read_text(encoding="utf-8"))["inputs"]
    names = dict(item.split("=") for item in inputs.pop("formats").split(","))
    formats = {name: QuantFormat.parse(fmt) for name, fmt in names.items()}

    def measure() -> BuiltModel:
        raise MadeAgain

    return lambda: measured_once(path, inputs, formats, measure)


def _folded(run: RunFolder) -> object:
    loaded = load_folded(run, FoldRecord.read(run.fold))
    return loaded.card.sha256, loaded.tokenizer("import os\n\n  你好 😀 \x00")["input_ids"]


def _moments(home: Path, folder: Path) -> dict[str, Read]:
    """The index and one matrix."""
    index = folder / "index.json"
    inputs = json.loads(index.read_text(encoding="utf-8"))["inputs"]
    matrix = min(folder.glob("*.safetensors"))

    def read() -> object:
        found = StoredMoments.open(folder, inputs)
        if found is None or not found.are_whole([matrix.stem]):
            return None
        return found.key_of, found.tokens, found.read(matrix.stem).tobytes()

    return {str(path.relative_to(home)): read for path in (index, matrix)}


def _rounded(home: Path, folder: Path) -> dict[str, Read]:
    """One tensor."""
    path = min(folder.glob("*.int4.safetensors"))
    tensor, fmt = path.name.removesuffix(".int4.safetensors"), QuantFormat.parse("int4")
    kept = RoundedTensors(folder, SafetensorsFile(path).metadata)

    def read() -> object:
        found = kept.read(tensor, fmt)
        return None if found is None else (found.codes.tobytes(), found.scale.tobytes())

    return {str(path.relative_to(home)): read}


def _drafts(run: RunFolder) -> None:
    """Files that a finished command has removed."""
    draft = FoldDraft(run.fold_draft, {"model": "m"})
    draft.scales = {f"layers.{number}.mlp": [1.0 + number / 3, 0.5] for number in range(20)}
    draft.add_losses("original", {"int8, memory low": 0.001}, None)
    times = TimesJournal.open(run.timing, {"model": "m"})
    for number in range(10):
        times.add(f"model {number}", Times(1.0 + number / 3, 2.0))


def _draft(run: RunFolder) -> object:
    told: list[str] = []
    found = FoldDraft.open(run.fold_draft, {"model": "m"}, told.append)
    if told:
        raise MadeAgain(told[0])
    return found.scales, found.losses, found.rounded


def _text(losses: TokenLosses) -> str:
    return repr({name: getattr(losses, name) for name in losses.__dataclass_fields__})
