"""What a run folder holds, read once and checked against its table; no model is loaded."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from qplan.artifact import read_json
from qplan.choosing.sizes import unfolded_fixed_bytes
from qplan.cost.file_bytes import FixedBytes
from qplan.errors import InputError
from qplan.formats import QuantFormat
from qplan.planner.patterns import matching
from qplan.run.folder import RUNS, RunFolder
from qplan.run.plan import Plan
from qplan.run.table import SensitivityTable
from qplan.run.verification import Verification
from qplan.run.verified import verified_plans
from qplan.settings import Memory

SENSITIVITY = "sensitivity.parquet"

ANY_NATS = 1e6
"""A limit on the loss that every plan keeps: for the smallest plan of all."""


def find_home(path: str | Path | None) -> RunFolder:
    """The run of a folder, of one of its files or budgets; the latest under ``qplan-runs`` for None.

    Relative paths are looked up here, then in the folder above: notebooks run in theirs.

    Raises:
        InputError: no finished analysis there; names those that are near.
    """
    if path is None:
        return RunFolder.latest(RUNS if RUNS.is_dir() else Path("..") / RUNS)
    start = Path(path).expanduser()
    places = [start] if start.is_absolute() else [start, Path("..") / start]
    for place in places:
        for folder in (place, *place.parents[:2]):
            if (folder / SENSITIVITY).is_file():
                return RunFolder(folder)
    homes = {near for place in places for near in (place, place.parent)} | {RUNS}
    near = sorted({p.parent for home in homes for p in home.glob(f"*/{SENSITIVITY}")})
    have = f"near it are {', '.join(map(str, near))}" if near else "there is none near it"
    remedy = "make one with 'qplan analyze MODEL' or 'make demo'"
    msg = f"{start} holds no finished analysis ({SENSITIVITY}); {have}; {remedy}"
    raise InputError(msg)


def under(table: SensitivityTable, memory: str | None) -> SensitivityTable:
    """The table with another memory setting as its goal; itself for None.

    Raises:
        InputError: a setting that was not measured.
    """
    if memory is None or memory == table.goal:
        return table
    found: Memory | None = next((known for known in table.memories if known == memory), None)
    if found is None:
        msg = f"memory {memory!r} was not measured; this run has {', '.join(table.memories)}"
        raise InputError(msg)
    return replace(table, conditions=replace(table.conditions, memory=found))


def checked_tensor(table: SensitivityTable, name: str) -> str:
    """A tensor's full name from a name or a pattern that matches one, e.g. ``0.mlp.down_proj``.

    Raises:
        InputError: nothing or several match; says what there is.
    """
    names = matching(name, [spec.name for spec in table.model.tensors], "tensor")
    if len(names) > 1:
        msg = f"tensor {name!r} means {len(names)}: {', '.join(names[:4])}, ...; name one, e.g. {names[0]!r}"
        raise InputError(msg)
    return names[0]


def checked_format(table: SensitivityTable, tensor: str, fmt: str) -> QuantFormat:
    """A format as it was measured for a tensor: what was asked for, or what its width made of that.

    Raises:
        InputError: not measured for this tensor; says what was.
    """
    asked = QuantFormat.parse(fmt).resolve(table.model.tensor(tensor).in_features)
    known = table.formats_of(tensor)
    if asked not in known:
        msg = f"{tensor} was not measured in {fmt}; it has {', '.join(map(str, known))}"
        raise InputError(msg)
    return asked


def verified(home: RunFolder, table: SensitivityTable) -> dict[str, tuple[Plan, Verification]]:
    """Plans of this table that were built and measured as they are, by the name of their folder, large ones first.

    Folders that another qplan or another analysis left are passed over, as `qplan frontier` does.
    """
    found = {folder: (plan, verification) for folder, plan, verification in verified_plans(home, table)}
    return dict(sorted(found.items(), key=lambda item: -item[1][0].files.total))


def planned(home: RunFolder) -> tuple[str, ...]:
    """Names of budgets that have a plan."""
    return tuple(sorted(path.parent.name for path in home.folder.glob("*/plan.json")))


def uniform_fixed_bytes(home: RunFolder, fixed: FixedBytes) -> FixedBytes | None:
    """What a uniform export ships whatever its width, where that is less than a plan: a folded tied head adds an op."""
    found = unfolded_fixed_bytes(home)
    return found if found is not None and found.total < fixed.total else None


def fold_source(home: RunFolder, table: SensitivityTable) -> Path:
    """The folder of the model that was analyzed: the folded one, or as the user gave it."""
    if home.fold.is_file() and read_json(home.fold, "qplan-fold", 1)["folded_sha256"] == table.model.sha256:
        return home.folded
    return Path(table.model.source).expanduser()
