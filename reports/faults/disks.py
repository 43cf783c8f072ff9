"""Full disks for the run folder, temporary files and standard output; then there is room, and the same command."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from qplan.errors import QplanError
from qplan.mnn.preflight import check_folder
from qplan.run.safetensors_file import SafetensorsFile
from reports.faults.bench import Bench, Ended, calm, differing
from reports.faults.memory_disk import can_mount, resize, small_disk

SIZES = {"4 kB": 4 << 10, "16 kB": 16 << 10, "64 kB": 64 << 10, "256 kB": 256 << 10, "1 MB": 1 << 20, "4 MB": 4 << 20}
COMMANDS = ("report", "analyze", "emit", "profile")
ROOM = 512 << 20


def disks(home: Path, done: Callable[[dict[str, Any]], None], *, quick: bool) -> None:
    """Run every command on disks with too little room.

    Args:
        home: folder for it all.
        done: called with every row.
        quick: ``analyze`` and ``report`` alone, on half of the sizes.
    """
    before, expected = calm(home)
    for command in COMMANDS:
        done(_no_output(home / "bench", command, before[command]))
    if not can_mount(home / "mount"):
        done({"part": "disks", "skipped": "memory disks cannot be mounted here: run it as root, outside a container"})
        return
    for command in ("report", "analyze") if quick else COMMANDS:
        for label, size in list(SIZES.items())[:: 2 if quick else 1]:
            for place in ("run folder", "temporary folder"):
                row = _full(Case(command, before[command], expected[command]), home / "bench", place, size)
                done({"part": "disks", "command": command, "place": place, "free": label} | row)


@dataclass(frozen=True)
class Case:
    """A command to be run on a full disk."""

    command: str
    before: Path
    """Its run folder."""
    expected: dict[str, str]
    """What it makes."""


def _full(case: Case, home: Path, place: str, size: int) -> dict[str, Any]:
    bench = Bench.new(home)
    if place == "run folder":
        disk, fill = bench.run, [case.before]
    else:
        shutil.copytree(case.before, bench.run)
        disk, fill = bench.temporary, []
    with small_disk(disk, size, fill):
        first = bench.do(case.command)
        row = _told(first, disk) | {"leftovers": bench.leftovers(), "half_written": half_written(bench.run)}
        if first.code:
            resize(disk, ROOM)
            again = bench.do(case.command)
            row |= {"again": again.code, "again_seconds": round(again.seconds, 1)}
            row |= {"again_told": again.told[-300:]} if again.code else {}
            row |= {"leftovers_again": bench.leftovers()}
        return row | {"differs": differing(bench.results(), case.expected)}


def _no_output(home: Path, command: str, before: Path) -> dict[str, Any]:
    bench = Bench.new(home)
    shutil.copytree(before, bench.run)
    with Path("/dev/full").open("wb") as full:
        ended = bench.do(command, stdout=full)
    row = {"part": "disks", "command": command, "place": "standard output", "free": "0 (/dev/full)"}
    return row | _told(ended, None) | {"leftovers": bench.leftovers(), "half_written": half_written(bench.run)}


def _told(ended: Ended, disk: Path | None) -> dict[str, Any]:
    """How a command ended, and whether its message names the disk and what to do."""
    place = "standard output" if disk is None else str(disk)
    return {
        "code": ended.code,
        "seconds": round(ended.seconds, 1),
        "alive": ended.alive,
        "names_disk": place in ended.told.replace("\n", ""),
        "names_remedy": bool(re.search(r"free space|another folder|TMPDIR|redirect|close", ended.told)),
        "traceback": "Traceback" in ended.told,
        "told": ended.told[-400:],
    }


def half_written(run: Path) -> list[str]:
    """Files under their final names that are not whole."""
    paths = [path for path in sorted(run.rglob("*")) if path.is_file() and ".qplan-" not in str(path)]
    found = [str(path.relative_to(run)) for path in paths if not _is_whole(path)]
    for model in run.glob("*/model"):
        found += [f"{model.name}: {finding.code}" for finding in check_folder(model).errors]
    return found


def _is_whole(path: Path) -> bool:
    try:
        if path.suffix == ".json":
            json.loads(path.read_text(encoding="utf-8"))
        elif path.suffix == ".jsonl":
            return path.read_bytes()[-1:] in {b"\n", b""}
        elif path.suffix == ".safetensors":
            SafetensorsFile(path).check()
        elif path.suffix == ".parquet":
            pq.read_table(path)
        else:
            return path.name == ".lock" or path.stat().st_size > 0
    except (OSError, ValueError, QplanError):
        return False
    return True
