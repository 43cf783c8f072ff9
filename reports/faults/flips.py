"""Damaged files of a run folder and of a built model: refused, made again and told, harmless, or silently believed."""

from __future__ import annotations

import json
import os
import random
import shutil
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qplan.errors import QplanError
from qplan.mnn.files import CONFIG_FILE
from qplan.mnn.preflight import check_folder
from qplan.run.damage import DamagedCacheWarning
from reports.faults.bench import Bench, calm
from reports.faults.readers import CACHES, MadeAgain, Rest, readers

TRIES = 60
"""Damages of every file."""

SOUND = {"refused", "made again", "harmless", "resumed"}
"""Outcomes that mislead nobody."""

KINDS = ("a bit", "a cut", "40 zeros", "a digit", "8 random bytes")


@dataclass(frozen=True)
class Damage:
    """A file that was changed."""

    kind: str
    data: bytes


def flips(home: Path, done: Callable[[dict[str, Any]], None], *, quick: bool) -> None:
    """Damage every artifact of a run and every file of a built model, and read it.

    Args:
        home: folder for it all.
        done: called with every row.
        quick: a sixth of the damages.
    """
    done_run = calm(home)[0]["report"]
    bench = Bench.new(home / "bench")
    shutil.copytree(done_run, bench.run)
    tries = TRIES // 6 if quick else TRIES
    for name, read in readers(bench.run).items():
        row = _artifact(bench.run / name, read, tries)
        done({"part": "flips", "file": name, "cache": name.startswith(CACHES), "of": "run folder"} | row)
    model = bench.run / "int8" / "model"
    for path in sorted(model.iterdir()):
        done({"part": "flips", "file": path.name, "cache": False, "of": "built model"} | _built(model, path, tries))


def damages(data: bytes, name: str, tries: int) -> Iterator[Damage]:
    """Changed copies of a file; always the same for the same name."""
    chance = random.Random(name)
    for number in range(tries):
        kind, at, changed = KINDS[number % len(KINDS)], chance.randrange(len(data)), bytearray(data)
        if kind == "a bit":
            changed[at] ^= 1 << chance.randrange(8)
        elif kind == "a cut":
            del changed[at:]
        elif kind == "40 zeros":
            changed[at : at + 40] = bytes(len(changed[at : at + 40]))
        elif kind == "a digit":
            digit = next((i for i in range(at, len(data)) if data[i] in b"0123456789"), None)
            if digit is None:
                continue
            changed[digit] = ord("0") + (changed[digit] - ord("0") + 1) % 10
        else:
            changed[at : at + 8] = chance.randbytes(len(changed[at : at + 8]))
        if bytes(changed) != data:
            yield Damage(kind, bytes(changed))


def _artifact(path: Path, read: Callable[[], object], tries: int) -> dict[str, Any]:
    """How damages of one artifact end."""
    whole, status = path.read_bytes(), path.stat()
    expected = read()
    outcomes: Counter[str] = Counter()
    silent: Counter[str] = Counter()
    for damage in damages(whole, path.name, tries):
        path.write_bytes(damage.data)
        outcome = _outcome(read, expected)
        outcomes[outcome] += 1
        silent[damage.kind] += outcome not in SOUND
    path.write_bytes(whole)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    return {"tries": sum(outcomes.values()), "outcomes": dict(outcomes), "silent": dict(+silent)}


def _outcome(read: Callable[[], object], expected: object) -> str:
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try:
            outcome = "harmless" if (found := read()) == expected else "SILENT"
            if outcome == "SILENT" and isinstance(found, Rest) and found.is_part_of(expected):
                outcome = "resumed"
        except MadeAgain:
            outcome = "made again"
        except QplanError:
            outcome = "refused"
        except Exception as error:  # noqa: BLE001 - what the table is about
            outcome = f"raised {type(error).__name__}"
    return "made again" if any(issubclass(each.category, DamagedCacheWarning) for each in told) else outcome


def _unseen(path: Path, whole: bytes) -> str:
    """What a change is that has no finding."""
    if path.name == CONFIG_FILE and json.loads(path.read_bytes()).keys() == json.loads(whole).keys():
        return "taken"
    return "SILENT"


def _built(model: Path, path: Path, tries: int) -> dict[str, Any]:
    """How damages of one file of a built model end in `qplan check`."""
    whole = path.read_bytes()
    outcomes: Counter[str] = Counter()
    silent: Counter[str] = Counter()
    for damage in damages(whole, path.name, tries):
        path.write_bytes(damage.data)
        try:
            findings = check_folder(model).findings
            severities = {finding.severity for finding in findings}
            outcome = "error" if "error" in severities else "warning" if severities else _unseen(path, whole)
        except QplanError:
            outcome = "refused"
        outcomes[outcome] += 1
        silent[damage.kind] += outcome == "SILENT"
    path.write_bytes(whole)
    return {"tries": sum(outcomes.values()), "outcomes": dict(outcomes), "silent": dict(+silent)}
