"""Times and weighs `qplan analyze` and `qplan emit` on a model, beside what `--dry-run` expects of them.

``python -m reports.scale.run qwen2.5-0.5b --work FOLDER``, one command for each model: a shape of
`reports.scale.shapes`, or the folder of a model. ``--quick`` takes fewer tokens, for small models and small machines;
``--streamed`` takes the fewest, rounded to nearest, within 10 GB, for the whole depth of models larger than memory.
A model's results replace its earlier ones in ``results.json``, from which ``README.md`` is written.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import torch

from qplan.artifact import versions
from qplan.model.load import load_model
from reports.scale.page import page
from reports.scale.shapes import SHAPES, write_shape

HOME = Path(__file__).parent


@dataclass(frozen=True)
class Setting:
    """How much of the two commands a model is given."""

    analyze: tuple[str, ...] = ()
    emit: tuple[str, ...] = ("--tokens", "512")
    samples: int = 16
    """Calibration sequences, as `qplan analyze` has them by default or as ``analyze`` says."""
    seq_len: int = 256


FULL = Setting()
QUICK = Setting(("--samples", "4", "--fit-tokens", "2048"), ("--tokens", "256"), samples=4)
LIMIT = ("--max-memory", "10GB")
FEWEST = ("--effort", "quick", "--samples", "4", "--seq-len", "64", "--fit-tokens", "256")
SIMPLE = ("--rounding", "rtn", "--fold", "off")
STREAMED = Setting(
    (*LIMIT, *FEWEST, *SIMPLE),
    (*LIMIT, "--tokens", "64", "--repair", "0", "--dynamic-option", "0"),
    samples=4,
    seq_len=64,
)

_RESIDENT = 2e9
"""Weights up to which passes are timed on the whole model."""


def pass_seconds(folder: Path, setting: Setting, machine: dict[str, Any]) -> dict[str, float | bool]:
    """Seconds of a pass: forwards and backwards over the calibration tokens, on the clock and on the processors.

    Of a model too large to be held, what its products take at this machine's speed.
    """
    weights = sum(path.stat().st_size for path in folder.glob("*.safetensors")) / 2
    if weights > _RESIDENT:
        seconds = 4 * weights * setting.samples * setting.seq_len / float(machine["flops"])
        return {"seconds": seconds, "processor_s": seconds * int(machine["processors"]), "computed": True}
    loaded = load_model(str(folder))
    tokens = torch.randint(0, min(4096, loaded.card.vocabulary), (1, setting.seq_len))
    embedded = loaded.embedding(tokens).requires_grad_()
    with torch.enable_grad():
        for _ in range(2):  # the first only warms up
            start, processor = time.monotonic(), time.process_time()
            loaded.model(inputs_embeds=embedded, use_cache=False).logits.logsumexp(-1).sum().backward()
    took, busy = time.monotonic() - start, time.process_time() - processor
    return {"seconds": setting.samples * took, "processor_s": setting.samples * busy, "computed": False}


@dataclass
class Stage:
    """A part of a command, between two of the lines it prints."""

    name: str
    seconds: float = 0.0
    processor_s: float = 0.0
    peak_bytes: int = 0
    """Peak resident bytes of the command and its children."""


@dataclass
class Watch:
    """Follows a command: the lines that it prints, its memory and its time on the processors."""

    process: psutil.Process
    stages: list[Stage] = field(default_factory=lambda: [Stage("starting")])
    ended: bool = False
    _busy: dict[int, float] = field(default_factory=dict)

    def follow(self) -> None:
        """Sample until the command ends."""
        while not self.ended:
            self.sample()
            time.sleep(0.2)

    def sample(self) -> None:
        """Add what was taken since the last time to the stage that runs."""
        held, stage = 0, self.stages[-1]
        try:
            found = [self.process, *self.process.children(recursive=True)]
        except psutil.Error:
            return
        for one in found:
            try:
                held += one.memory_info().rss
                times = one.cpu_times()
            except psutil.Error:
                continue
            stage.processor_s += times.user + times.system - self._busy.get(one.pid, 0.0)
            self._busy[one.pid] = times.user + times.system
        stage.peak_bytes = max(stage.peak_bytes, held)


def follow(command: list[str], folder: Path) -> list[Stage]:
    """Run a command, which must succeed; returns its stages."""
    print("$", " ".join(command), flush=True)
    with subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as process:
        watch = Watch(psutil.Process(process.pid))
        sampler = threading.Thread(target=watch.follow)
        sampler.start()
        began = time.monotonic()
        for line in process.stderr or ():
            print(line, end="", flush=True)
            if line.startswith("· "):
                now = time.monotonic()
                watch.stages[-1].seconds, began = now - began, now
                # without the folders of this machine
                told = re.sub(r"(?:/[^/\s,]+)+/([^/\s,]+)", r"\1", line[2:].strip())
                watch.stages.append(Stage(re.sub(r"\s+", " ", told)))
        process.wait()
        watch.stages[-1].seconds = time.monotonic() - began
        watch.ended = True
        sampler.join()
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return [stage for stage in watch.stages if stage.seconds >= 0.5]  # noqa: PLR2004


def disk(folder: Path) -> dict[str, int]:
    """Bytes of every file or folder in a run folder."""
    parts = {path.name: [path] if path.is_file() else [*path.rglob("*")] for path in sorted(folder.iterdir())}
    return {name: sum(part.stat().st_size for part in held if part.is_file()) for name, held in parts.items()}


def measure(name: str, folder: Path, work: Path, setting: Setting, also: list[str]) -> dict[str, Any]:
    """Expect, then run, the two commands."""
    program = str(Path(sys.executable).with_name("qplan"))
    run = work / f"run-{name}"
    analyze = [str(folder), "--run", str(run), *setting.analyze, *also]
    commands = {
        "analyze": [*analyze, "--restart"],
        "emit": ["--run", str(run), "--budget", "int4", *setting.emit],
    }
    results: dict[str, Any] = {
        "python": platform.python_version(),
        "versions": versions(),
        "processors": len(os.sched_getaffinity(0)),
        "tokens": setting.samples * setting.seq_len,
        "commands": {},
    }
    for command, arguments in commands.items():
        told = subprocess.run(
            [program, command, *arguments, "--dry-run", "--json"],
            cwd=work,
            check=True,
            stdout=subprocess.PIPE,
            text=True,
        )
        forecast = json.loads(told.stdout)
        results.setdefault("pass", pass_seconds(folder, setting, forecast["machine"]))
        before = disk(run) if run.is_dir() else {}
        stages = follow([program, command, *arguments], work)
        shown = " ".join(("qplan", command, *arguments)).replace(f"{work}/", "").replace(str(folder), folder.name)
        results["disk_bytes"] = disk(run)
        results["commands"][shown] = {
            "machine": forecast["machine"],
            "expected": forecast["expected"],
            "stages": [vars(stage) for stage in stages],
            "written_bytes": sum(results["disk_bytes"].values()) - (sum(before.values()) if command == "emit" else 0),
        }
        keep(name, results)
    return results


def keep(name: str, results: dict[str, Any]) -> None:
    """Write a model's results, and the page of all."""
    path = HOME / "results.json"
    everything = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    everything[name] = results
    path.write_text(json.dumps(everything, indent=1) + "\n", encoding="utf-8")
    (HOME / "README.md").write_text(page(everything), encoding="utf-8")


def main() -> None:
    """Measure one model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help=f"{', '.join(sorted(SHAPES))}, or the folder of a model")
    parser.add_argument("--work", type=Path, required=True, help="folder for shapes and runs")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--quick", action="store_const", dest="setting", const=QUICK, help="fewer tokens")
    how.add_argument("--streamed", action="store_const", dest="setting", const=STREAMED, help="fewest, within 10 GB")
    parser.add_argument("also", nargs="*", help="more options of analyze, after --")
    options = parser.parse_args()
    work: Path = options.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    folder = work / options.model if options.model in SHAPES else Path(options.model).resolve()
    if options.model in SHAPES:
        write_shape(options.model, folder)
    measure(folder.name, folder, work, options.setting or FULL, options.also)


if __name__ == "__main__":
    main()
