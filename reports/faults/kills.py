"""Signals at every stage of every command, then the same command again: what is lost, left over or done twice."""

from __future__ import annotations

import os
import re
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from reports.faults.bench import LIMIT_S, Bench, Running, calm, differing
from reports.faults.processes import descendants

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
CODES = {signal.SIGKILL: -9, signal.SIGTERM: 143, signal.SIGINT: 130, signal.SIGHUP: 129}


@dataclass(frozen=True)
class Stage:
    """Where a command is hit: once all of these are seen."""

    name: str
    told: str = ""
    """Words on standard error."""
    child: str = ""
    """Part of a child's command line."""
    file: str = ""
    """Pattern of a file in the run folder."""
    wait_s: float = 0.1
    """How much later."""

    def reached(self, running: Running, run: Path) -> bool:
        """Whether the command is there."""
        if self.told not in running.told or (self.file and not any(run.glob(self.file))):
            return False
        return not self.child or any(self.child in line and "launch.py" not in line for line in descendants().values())


STAGES = {
    "analyze": (
        Stage("loading", "loading"),
        Stage("folding, moments", "folding: scales fitted"),
        Stage("folding, losses", "folding: uniform models, original"),
        Stage("folding, losses of the folded model", "folding: uniform models, folded"),
        Stage("moments", "second moments", wait_s=0.02),
        Stage("rounding", "rounding tensors", wait_s=0.02),
        Stage("measuring", "measuring every loss"),
        Stage("joint losses", "measuring whole plans", wait_s=0.02),
    ),
    "emit": (
        Stage("loading", "loading"),
        Stage("export: llmexport starts", child="exporter_child.py"),
        Stage("export: llmexport loads", child="exporter_child.py", wait_s=3.0),
        Stage("export: MNNConvert", child="exporter_child.py", file=".skeleton*/draft/*/*.onnx", wait_s=0.2),
        Stage("export: the graph is read back", child="converter_child.py", wait_s=0.02),
        Stage("gate", "FP16 on the engine"),
        Stage("gate: the engine runs", "FP16 on the engine", child="session_child.py", wait_s=0.05),
        Stage("choosing", "joint loss of the plan", wait_s=0.0),
        Stage("quantized build", "plan: building", child="converter_child.py", wait_s=0.02),
        Stage("verification: uniform", "int8: building", wait_s=0.05),
        Stage("verification: the engine runs", "int8: memory low", child="session_child.py", wait_s=0.05),
        Stage("verification: plan", "plan: memory low", wait_s=0.05),
        Stage("other budgets", "other budgets", wait_s=0.0),
    ),
    "profile": (
        Stage("loading", "loading"),
        Stage("building", "timing", child="converter_child.py", wait_s=0.02),
        Stage("timing", "timing", child="session_child.py", wait_s=0.1),
    ),
    "ladder": (
        Stage("loading", "loading"),
        Stage("export", child="exporter_child.py", wait_s=1.0),
        Stage("a rung: build", "int8 on the engine", wait_s=0.1),
        Stage("a rung: the engine runs", "fp16 on the engine", child="session_child.py", wait_s=0.05),
    ),
}


def kills(home: Path, done: Callable[[dict[str, object]], None], *, quick: bool) -> None:
    """Run every command, hit at every stage and started again: four times, so that every stage gets every signal.

    Args:
        home: folder for it all.
        done: called with every row.
        quick: once; signals take turns from stage to stage.
    """
    before, expected = calm(home)
    for turn in range(1 if quick else len(SIGNALS)):
        for command in STAGES:
            bench = Bench.new(home / "bench")
            shutil.copytree(before[command], bench.run)
            for row in _series(bench, command, turn, expected[command]):
                done(row)


def _series(bench: Bench, command: str, turn: int, expected: dict[str, str]) -> Iterator[dict[str, Any]]:
    """One command, hit at each stage in turn; after the last hit it ends in peace."""
    rows: list[dict[str, Any]] = []
    kept: dict[str, int] = {}
    measured: list[bytes] = []
    for place, stage in enumerate((*STAGES[command], None), turn):
        number = SIGNALS[place % len(SIGNALS)]
        running = bench.start(command)
        hit = stage is not None and _hit(running, stage, number, bench.run)
        ended = running.end()
        found = bench.kept()
        if rows:  # what the hit before had left to this one
            rows[-1]["kept"] = _by_kind(name for name, changed in kept.items() if found.get(name) == changed)
            rows[-1]["kept"] |= {"measurements": len(measured)} if measured else {}
            rows[-1]["measurements_lost"] = sum(line not in bench.measured() for line in measured)
            rows[-1]["went_on"] = _went_on(ended.told)
        left = bench.leftovers()
        rows.append(
            asdict(stage or Stage("to the end"))
            | {
                "part": "kills",
                "command": command,
                "stage": stage.name if stage else "to the end",
                "signal": number.name if hit else "",
                "code": ended.code,
                "expected_code": CODES[number] if hit else 0,
                "seconds": round(ended.seconds, 1),
                "alive": ended.alive,
                "leftovers": left,
                "told": ended.told[-200:],
            }
        )
        kept, measured = found, bench.measured()
        if len(rows) > 1:
            yield rows[-2]
    yield rows[-1] | {"differs": differing(bench.results(), expected)}


def _hit(running: Running, stage: Stage, number: signal.Signals, run: Path) -> bool:
    """Wait for a stage and send the signal; False if the command ended before."""
    deadline = time.monotonic() + LIMIT_S
    while not stage.reached(running, run):
        if running.process.poll() is not None or time.monotonic() > deadline:
            return False
        time.sleep(0.005)
    time.sleep(stage.wait_s)
    if running.process.poll() is not None:
        return False
    os.kill(running.process.pid, number)
    return True


_KINDS = {
    r"(skeleton|unfolded)": "exports",
    r"rounding/(fit|judge)": "moments",
    r"rounding/tensors": "rounded tensors",
    r"folded/": "folded model",
    r"baselines": "baselines",
    r"profile/": "times",
    r"int8/": "plan and model",
}


def _by_kind(names: Iterable[str]) -> dict[str, int]:
    kinds = (next((kind for pattern, kind in _KINDS.items() if re.search(pattern, name)), None) for name in names)
    return dict(Counter(kind for kind in kinds if kind is not None))


def _went_on(told: str) -> list[str]:
    """What a command says about work that it need not do again."""
    return re.findall(r"(folding: going on from [^·]*|removed \d+ temporary [^·]*|resum\w+ [^·]*)", told)
