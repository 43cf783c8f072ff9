"""A small model, commands on it in seconds, and what a command leaves: processes, files, results."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from safetensors.numpy import load_file, save_file

import qplan
from reports.faults.processes import left_alive

ROOT = Path(__file__).resolve().parents[2]
LIMIT_S = 600

ANALYZE = "--samples 2 --seq-len 64 --fit-tokens 256 --formats int8,int4 --mode measured --jobs 1"
EMIT = "--budget int8 --repair 1 --tokens 64 --dynamic-option 0"
PROFILE = "--rounds 1 --prompt-tokens 16"
LADDER = "--tokens 64 --seq-len 32"

_PROGRAM = "import sys; from qplan.cli.main import main; sys.argv[0] = 'qplan'; main()"
_UUID = re.compile(rb"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_LEFT = re.compile(r"\..*\.qplan-|^qplan-[a-z]+-\d|^\.lock$")


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    seconds: float
    told: str
    """Standard error."""
    alive: list[str]
    """Command lines of its processes that were there two seconds later."""


@dataclass
class Running:
    """A command at work."""

    process: subprocess.Popen[bytes]
    errors: Path
    started: float = field(default_factory=time.monotonic)

    @property
    def told(self) -> str:
        """Standard error so far, as one line."""
        return " ".join(self.errors.read_text(encoding="utf-8", errors="replace").split())

    def end(self) -> Ended:
        """Wait for it."""
        try:
            code = self.process.wait(LIMIT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = self.process.wait()
        return Ended(code, time.monotonic() - self.started, self.told, left_alive())


@dataclass(frozen=True)
class Bench:
    """Folders of one series of commands; every series runs in folders of the same names."""

    home: Path

    @classmethod
    def new(cls, home: Path) -> Bench:
        """An empty one."""
        shutil.rmtree(home, ignore_errors=True)
        (home / "tmp").mkdir(parents=True)
        return cls(home)

    @property
    def run(self) -> Path:
        """The run folder."""
        return self.home / "run"

    @property
    def temporary(self) -> Path:
        """The temporary folder of all commands."""
        return self.home / "tmp"

    @property
    def model(self) -> Path:
        """The model that is analyzed: the same in all series."""
        return small_model(self.home.parent / "small")

    def arguments(self, command: str) -> list[str]:
        """A command line with quick settings."""
        run = ["--run", str(self.run)]
        return {
            "analyze": ["analyze", str(self.model), *ANALYZE.split(), *run],
            "emit": ["emit", *EMIT.split(), *run],
            "profile": ["profile", *PROFILE.split(), *run],
            "ladder": ["ladder", str(self.model), *LADDER.split(), *run],
            "report": ["report", "int8", *run],
            "explain": ["explain", "int8", *run],
        }[command]

    def start(self, command: str, *, stdout: int | IO[bytes] = subprocess.DEVNULL) -> Running:
        """Start a command."""
        errors = self.home / "stderr.txt"
        with errors.open("wb") as stream:
            process = subprocess.Popen(
                [sys.executable, "-c", _PROGRAM, *self.arguments(command)],
                stdout=stdout,
                stderr=stream,
                stdin=subprocess.DEVNULL,
                cwd=self.home,
                env=os.environ
                | {
                    "PYTHONPATH": str(ROOT),
                    "TMPDIR": str(self.temporary),
                    "OMP_NUM_THREADS": "1",
                    "COLUMNS": "300",
                },
            )
        return Running(process, errors)

    def do(self, command: str, *, stdout: int | IO[bytes] = subprocess.DEVNULL) -> Ended:
        """Run a command to its end."""
        return self.start(command, stdout=stdout).end()

    def leftovers(self) -> list[str]:
        """Unfinished files and folders, and locks."""
        found = [path for path in self.run.rglob("*") if _LEFT.search(path.name)]
        found += [path for path in self.home.iterdir() if _LEFT.search(path.name)]
        found += list(self.temporary.iterdir())
        return sorted(str(path.relative_to(self.home)) for path in found)

    def kept(self) -> dict[str, int]:
        """Finished files of the run folder, by name, with the time of their last change."""
        paths = [path for path in self.run.rglob("*") if path.is_file() and not _LEFT.search(str(path))]
        return {str(path.relative_to(self.run)): path.stat().st_mtime_ns for path in paths}

    def measured(self) -> list[bytes]:
        """Lines of the journal."""
        path = self.run / "sensitivity.journal.jsonl"
        return path.read_bytes().splitlines() if path.is_file() else []

    def results(self) -> dict[str, str]:
        """See `results_of`."""
        return results_of(self.run, "int8")


def results_of(run: Path, budget: str) -> dict[str, str]:
    """Hashes of the table, rounded tensors, a plan and its model's files, as far as a run has them.

    MNN's converter writes a random identifier into every export: it is taken out, and so are its checksums.
    """
    paths = [*run.glob("sensitivity.parquet"), *run.glob("rounding/tensors-*/*"), *run.glob(f"{budget}/model/*")]
    contents = {path: _UUID.sub(b"", path.read_bytes()) for path in sorted(paths) if path.name != "checksums.json"}
    found = {str(path.relative_to(run)): _sha256(data) for path, data in contents.items()}
    plan = run / budget / "plan.json"
    if plan.is_file():
        document = json.loads(plan.read_text(encoding="utf-8"))
        document["solver"].pop("seconds", None)
        found[f"{budget}/plan.json"] = _sha256(json.dumps(document).encode())
    return found


def small_model(out: Path) -> Path:
    """The embedded model with its first layer alone."""
    if out.is_dir():
        return out
    shutil.copytree(Path(qplan.__file__).parent / "demo" / "stdlib-3m", out)
    config = json.loads((out / "config.json").read_text(encoding="utf-8"))
    config |= {"num_hidden_layers": 1, "layer_types": config["layer_types"][:1]}
    (out / "config.json").write_text(json.dumps(config), encoding="utf-8")
    weights = load_file(out / "model.safetensors")
    first = {name: value for name, value in weights.items() if ".layers." not in name or ".layers.0." in name}
    save_file(first, out / "model.safetensors", {"format": "pt"})
    return out


def calm(work: Path) -> tuple[dict[str, Path], dict[str, dict[str, str]]]:
    """Run all commands in peace, once for all parts.

    Returns:
        The run folder before each command, and the results after it.
    """
    home, order = work / "calm", ("analyze", "emit", "profile", "ladder")
    before = {command: home / f"before-{command}" for command in (*order, "report")}
    noted = home / "results.json"
    if not noted.is_file():
        bench, expected = Bench.new(work / "bench"), {}
        for command in order:
            shutil.copytree(bench.run, before[command]) if bench.run.exists() else before[command].mkdir(parents=True)
            ended = bench.do(command)
            if ended.code:
                msg = f"{command} ended with {ended.code}: {ended.told}"
                raise RuntimeError(msg)
            expected[command] = bench.results()
        shutil.copytree(bench.run, before["report"])
        noted.write_text(json.dumps(expected | {"report": bench.results()}), encoding="utf-8")
    return before, json.loads(noted.read_text(encoding="utf-8"))


def differing(found: Mapping[str, str], expected: Mapping[str, str]) -> list[str]:
    """Names of results that are not the same, or missing."""
    return sorted(name for name in {*found, *expected} if found.get(name) != expected.get(name))


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
