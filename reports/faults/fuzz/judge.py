"""Runs cases and says what is wrong with their outcomes."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path

from qplan import errors
from qplan.artifact import sha256_json
from qplan.errors import QplanError
from qplan.mnn.build.skeleton import MARKER
from reports.faults.fuzz.bench import Bench
from reports.faults.fuzz.cases import Case, hostile_names
from reports.faults.fuzz.runner import BUG, HANGS, Outcome, run
from reports.faults.fuzz.way import Change

FORESEEN = {0} | {
    kind.exit_code for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, QplanError)
} - {BUG}
"""Exit codes that a command may have, whatever it is given; signals have others."""

_TOLD = "note: "
"""How a line begins that says what was left out, or made again."""

_REL = 1e-9
"""Numbers of two passes over the same data may differ by this much."""

_MOST_BYTES = 1 << 26
"""More than any file of the whole folders has."""

Answer = dict[str, object]
"""What a command says, flattened: leaves of its JSON object, and the report that it writes, by path."""


@dataclass(frozen=True)
class Verdict:
    """What a case came to."""

    case: Case
    outcome: Outcome
    faults: tuple[str, ...]
    """What is wrong; empty if nothing."""


@dataclass
class Judge:
    """Runs cases one by one in folders of their own."""

    bench: Bench
    work: Path
    count: int = 0
    _answers: dict[tuple[str, ...], Answer] = field(default_factory=dict)

    def try_(self, case: Case) -> Verdict:
        """Run a case and judge it."""
        if case.same_answer:
            self._whole_answer(case)
        self.count += 1
        with self.bench.copy(self.work / str(self.count) / "in", case.bases) as folder:
            hostile_names(folder)
            for damage in case.damages:
                _apply(damage.apply, folder / damage.file)
            before = _files(folder)
            outcome = run(case.line, folder, case.environment)
            faults = [*_wrong_end(outcome), *_half_written(folder, before)]
            if case.same_answer and outcome.code == 0 and _TOLD not in outcome.stderr:
                faults += _differences(self._whole_answer(case), _answer(outcome, folder))
        return Verdict(case, outcome, tuple(faults))

    def _whole_answer(self, case: Case) -> Answer:
        """What the line says of whole folders, without what differs from one time to the next."""
        if case.line in self._answers:
            return self._answers[case.line]
        kept = self.bench.folder / f"answer-{sha256_json(case.line)[:16]}.json"
        if not kept.is_file():
            found = []
            for _ in range(2):
                self.count += 1
                with self.bench.copy(self.work / str(self.count) / "in", case.bases) as folder:
                    found.append(_answer(run(case.line, folder), folder))
            first, second = found
            same = {key: value for key, value in first.items() if second.get(key) == value}
            kept.write_text(json.dumps(same), encoding="utf-8")
        self._answers[case.line] = json.loads(kept.read_text(encoding="utf-8"))
        return self._answers[case.line]


def _apply(change: Change, path: Path) -> None:
    """Change a file; what an earlier damage removed, or made no file or no such file, stays as it is."""
    if (
        path.is_symlink()
        or (path.exists() and not path.is_file())
        or (path.exists() and path.stat().st_size > _MOST_BYTES)
    ):
        return
    try:
        change(path)
    except Exception:  # noqa: BLE001 - libraries say in many ways that they cannot read it
        return


def _wrong_end(outcome: Outcome) -> list[str]:
    if outcome.code == HANGS:
        return ["hangs"]
    if outcome.code not in FORESEEN:
        return [f"exit code {outcome.code}"]
    if "Traceback (most recent call last)" in outcome.stderr + outcome.stdout:
        return ["a traceback"]
    if outcome.code and not (outcome.stderr + outcome.stdout).strip():
        return ["no message"]
    return []


def _files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def _half_written(folder: Path, before: set[str]) -> list[str]:
    """Temporary files that were left, and new JSON that cannot be read."""
    faults = []
    for name in sorted(_files(folder) - before):
        path = folder / name
        if ".qplan-" in path.name or (path.name.startswith("qplan-") and path.name != MARKER):
            faults.append(f"left {name}")
        elif path.suffix == ".json" and path.is_file():
            try:
                json.loads(path.read_text(encoding="utf-8"))
            except ValueError:
                faults.append(f"half written: {name}")
    return faults


def _answer(outcome: Outcome, folder: Path) -> Answer:
    """The answer of a command with ``--json``."""
    try:
        document = json.loads(outcome.stdout)
    except ValueError:
        return {"": outcome.stdout}
    flat: Answer = {}
    _flatten(document, "", flat)
    for key in ("html", "markdown"):
        path = folder / str(document.get(key))
        if document.get(key) and path.is_file():
            flat[f"text of {key}"] = path.read_text(encoding="utf-8")
    return flat


def _flatten(value: object, path: str, flat: Answer) -> None:
    if isinstance(value, dict):
        for key, below in value.items():
            _flatten(below, f"{path}/{key}", flat)
    elif isinstance(value, list):
        flat[f"{path}/length"] = len(value)
        for index, below in enumerate(value):
            _flatten(below, f"{path}/{index}", flat)
    else:
        flat[path] = value


def _differences(whole: Answer, found: Answer) -> list[str]:
    for key, value in whole.items():
        other = found.get(key)
        if isinstance(value, float) and isinstance(other, float) and math.isclose(value, other, rel_tol=_REL):
            continue
        if value != other:
            shown = (str(value)[:60], str(other)[:60])
            if isinstance(value, str) and isinstance(other, str) and len(value) > 60:
                at = next((i for i, pair in enumerate(zip(value, other, strict=False)) if pair[0] != pair[1]), 0)
                shown = (value[max(0, at - 40) : at + 40], other[max(0, at - 40) : at + 40])
            return [f"silently another answer: {key} is {shown[1]!r}, of the whole folder {shown[0]!r}"]
    return []
