"""Finds a run, and what users name in its table: tensors, formats, memory settings."""

from __future__ import annotations

from pathlib import Path

from qplan.errors import InputError
from qplan.formats import QuantFormat
from qplan.planner.patterns import matching
from qplan.run.folder import RUNS, SENSITIVITY_FILE, RunFolder, finished_runs
from qplan.run.table import SensitivityTable


def find_home(path: str | Path | None) -> RunFolder:
    """The run of a folder, of one of its files or budgets; the latest under ``qplan-runs`` for None.

    Relative paths are looked up in the working folder, then in the one above it: notebooks run in their own folder.

    Raises:
        InputError: no finished analysis there; names those nearby.
    """
    if path is None:
        return RunFolder.latest(RUNS if RUNS.is_dir() else Path("..") / RUNS)
    start = Path(path).expanduser()
    places = [start] if start.is_absolute() else [start, Path("..") / start]
    for place in places:
        for folder in (place, *place.parents[:2]):
            if RunFolder(folder).is_finished:
                return RunFolder(folder)
    parents = {near for place in places for near in (place, place.parent)} | {RUNS}
    near = sorted({run.folder for parent in parents for run in finished_runs(parent)})
    have = f"near it are {', '.join(map(str, near))}" if near else "there is none near it"
    remedy = "make one with 'qplan analyze MODEL' or 'make demo'"
    msg = f"{start} holds no finished analysis ({SENSITIVITY_FILE}); {have}; {remedy}"
    raise InputError(msg)


def under(table: SensitivityTable, memory: str | None) -> SensitivityTable:
    """The table with another memory setting as its goal; itself for None.

    Raises:
        InputError: a setting that was not measured.
    """
    found = next((known for known in table.memories if known == (memory or table.goal)), None)
    if found is None:
        msg = f"memory {memory!r} was not measured; this run has {', '.join(table.memories)}"
        raise InputError(msg)
    return table.under(found)


def checked_tensor(table: SensitivityTable, name: str) -> str:
    """A tensor's full name from a name or a pattern that matches one, e.g. ``0.mlp.down_proj``.

    Raises:
        InputError: nothing or several match; says what there is.
    """
    names = matching(name, [spec.name for spec in table.model.planned], "tensor")
    if len(names) > 1:
        msg = f"tensor {name!r} matches {len(names)}: {', '.join(names[:4])}, ...; name one, e.g. {names[0]!r}"
        raise InputError(msg)
    return names[0]


def checked_multiplier(table: SensitivityTable, name: str) -> str:
    """The same, of a tensor that multiplies something.

    Raises:
        InputError: as of `checked_tensor`, or an untied embedding.
    """
    tensor = checked_tensor(table, name)
    if table.model.tensor(tensor).is_embedding:
        other = table.model.tensors[0].name
        msg = f"{tensor} has no inputs: an embedding multiplies nothing, tokens are looked up in it; try {other!r}"
        raise InputError(msg)
    return tensor


def checked_format(table: SensitivityTable, tensor: str, fmt: str) -> QuantFormat:
    """The format that a tensor was measured in for a format of the run: the same, or the one that its width forced.

    Raises:
        InputError: not measured for this tensor; says what was.
    """
    asked = table.model.tensor(tensor).resolve(QuantFormat.parse(fmt))
    known = table.formats_of(tensor)
    if asked not in known:
        msg = f"{tensor} was not measured in {fmt}; it has {', '.join(map(str, known))}"
        raise InputError(msg)
    return asked
