"""Rounds a model on Ray clusters of one and two workers on this machine, and plans larger ones on paper.

``python -m reports.ray.run --model MODEL --work FOLDER`` writes README.md beside it.
"""

from __future__ import annotations

import argparse
import os
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from qplan.artifact import sha256_files
from qplan.calibration import load_text, tokenize
from qplan.formats import INT4, INT8, QuantFormat
from qplan.model.load import load_model
from qplan.rounding.moments import gather_moments
from qplan.rounding.round_all import round_all
from qplan.rounding.round_tasks import RoundItem, RoundTensors, by_tensor
from qplan.rounding.rounder import Rounder
from qplan.rounding.stored_cache import StoredCache
from qplan.run.folder import RunFolder
from qplan.sensitivity.menu import resolve_menu
from qplan.spread.cluster import Cluster
from qplan.spread.nodes import workers_at
from qplan.spread.work import Task
from reports.ray.emit import section
from reports.ray.shapes import COPIES, FIT_TOKENS, MATRICES, SHAPES, Shape
from tests.support.local_cluster import NODE, local_cluster

FORMATS = (INT8, INT4, QuantFormat(3))

MOST = 2
"""Workers at most: this machine has two processors."""

FLOPS = 50e9
"""A processor's rate in GPTQ, assumed: less than half of what large products in fp32 reach."""


@dataclass(frozen=True)
class Timed:
    """Some work, whose results come with the worker and its processor time."""

    work: Any
    threads: int = 1

    @property
    def memory_bytes(self) -> int:
        """As the work's."""
        return int(self.work.memory_bytes)

    def open(self) -> Callable[[Any], tuple[int, float, float]]:
        """Returns the process, processor seconds of the task, and those of everything before the first."""
        run = self.work.open()
        before = [time.process_time()]

        def timed(item: Any) -> tuple[int, float, float]:  # noqa: ANN401 - the work's
            begin = time.process_time()
            run(item)
            first = before.pop() if before else 0.0
            return os.getpid(), time.process_time() - begin, first

        return timed


@dataclass(frozen=True)
class Found:
    """A stage on one cluster."""

    workers: int
    tasks: int
    total_s: float
    """Processor time of all tasks."""
    longest_s: float
    """Of the worker that had most to do."""
    start_s: float
    """Processor time of a worker before its first task: imports and loading the model."""
    wall_s: float


def rounded(hands: Cluster, rounder: Rounder, wanted: Sequence[RoundItem], workers: int) -> Found:
    """Round tensors by a cluster."""
    begin = time.monotonic()
    spent: dict[int, float] = {}
    starts: list[float] = []
    for _, (process, seconds, first) in hands.run(Timed(RoundTensors(rounder)), [Task(i, i[0]) for i in wanted]):
        spent[process] = spent.get(process, 0.0) + seconds
        starts += [first] if first else []
    wall = time.monotonic() - begin
    return Found(workers, len(wanted), sum(spent.values()), max(spent.values()), max(starts), wall)


def main() -> None:
    """Measure, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    given = parser.parse_args()
    torch.set_num_threads(1)
    shutil.rmtree(given.work, ignore_errors=True)
    loaded = load_model(str(given.model))
    made = tokenize(
        load_text("python-stdlib", loaded.tokenizer, print),
        loaded.tokenizer,
        samples=16,
        seq_len=128,
        seed=0,
        context=loaded.card.context,
        vocabulary=loaded.card.vocabulary,
        fit_tokens=4096,
    )
    inputs = {"model": loaded.card.sha256}
    moments = gather_moments(loaded, torch.from_numpy(made.fit), given.work / "moments", inputs=inputs)

    def rounder(folder: str) -> Rounder:
        return Rounder(loaded, "auto", moments, moments, StoredCache(given.work / folder, inputs))

    menu = resolve_menu(loaded.card, FORMATS, 0)[0]
    wanted = by_tensor([(name, fmt) for name, own in menu.items() for fmt in own])
    found = []
    with local_cluster(nodes=1) as cluster:
        for workers in (1, 2):
            if workers == MOST:
                cluster.add_node(**NODE)
            run = RunFolder(given.work / f"run-{workers}")
            run.folder.mkdir(parents=True)
            with workers_at(cluster.address, run, loaded.folder, print) as hands:
                if hands is not None:
                    found.append(rounded(hands, rounder(f"ray-{workers}"), wanted, workers))
                    print(found[-1])
    begin = time.process_time()
    round_all(rounder("here"), menu)
    here_s = time.process_time() - begin
    hashes = [
        sha256_files(sorted((given.work / folder).iterdir()))
        for folder in ("here", *(f"ray-{f.workers}" for f in found))
    ]
    print(here_s, hashes)
    page = Path(__file__).with_name("README.md")
    page.write_text(page_of(found, given.model.name, here_s, same=len(set(hashes)) == 1), encoding="utf-8")


def page_of(found: Sequence[Found], model: str, here_s: float, *, same: bool) -> str:
    """The page."""
    one, two = found
    rows = [
        f"| {stage.workers} | {stage.tasks} | {stage.total_s:.1f} | {stage.longest_s:.1f} | "
        f"{one.longest_s / stage.longest_s:.2f} | {stage.start_s:.1f} |"
        for stage in found
    ]
    verdict = "the same bytes in every file" if same else "DIFFERENT bytes"
    return f"""# Rounding on a Ray cluster

Written by `python -m reports.ray.run --model {model} --work FOLDER`; the plan below it follows from shapes alone
(`reports/ray/shapes.py`).

## One and two workers on this machine

{model}, every tensor rounded to {", ".join(f"`{fmt.name}`" for fmt in FORMATS)} with `--rounding auto`, on a cluster
of one and of two nodes of one processor each. The machine is shared, so times are processor times of the workers: a
stage cannot end before the worker with the longest does. In this process alone, the same takes {here_s:.1f} s. Both
clusters wrote {verdict} as this process.

| workers | tasks | all tasks, s | longest worker, s | speed-up | start of a worker, s |
|---:|---:|---:|---:|---:|---:|
{chr(10).join(rows)}

A worker starts once per command: it imports torch and loads the model. Two workers do
{two.total_s / one.total_s:.2f} times the work of one in all: each factors the moments that it needs.

{section()}## On paper: 70B and 671B

Rounding every tensor to one format, as `emit` does, with moments of {FIT_TOKENS:,} tokens. Nothing here was run.

| | {" | ".join(shape.name for shape in SHAPES)} |
|---|{"---:|" * len(SHAPES)}
{_planned()}

Read: a task's weights in bf16 and the two matrices of moments of its inputs. Written: a byte per weight and its scales.
The memory of a worker is what `qplan.rounding.round_tasks` reserves: its largest tensor in {COPIES} copies and that
tensor's moments in {MATRICES}, on top of the model; of a streamed model, weights are read tensor by tensor. Hours are
those of GPTQ's products at {FLOPS / 1e9:.0f} GFLOP/s per processor; no cluster ends sooner than the longest task.
Experts of a mixture each have inputs, and so moments, of their own.
"""


def _planned() -> str:
    rows: dict[str, list[str]] = {}
    for shape in SHAPES:
        cells = {
            "weights, billions": f"{shape.weights / 1e9:.1f}",
            "rounding tasks": f"{shape.tasks:,}",
            "moments on disk, both sets, GB": f"{2 * shape.moment_bytes / 1e9:,.0f}",
            "read by rounding tasks, GB": f"{shape.read_bytes / 1e9:,.0f}",
            "written by rounding tasks, GB": f"{shape.written_bytes / 1e9:,.0f}",
            "hidden states between layers, gathering, GB": f"{shape.between_bytes / 1e9:,.0f}",
            "worker besides the model, GB": f"{shape.task_bytes / 1e9:.1f}",
            "worker with the whole model in float32, GB": f"{(4 * shape.weights + shape.task_bytes) / 1e9:,.0f}",
            "processor hours": f"{shape.rounding_flops / FLOPS / 3600:,.0f}",
            "longest task, minutes": f"{shape.longest_flops / FLOPS / 60:.0f}",
            "hours on 64 processors": f"{_hours(shape, 64):.1f}",
            "hours on 512 processors": f"{_hours(shape, 512):.1f}",
        }
        for name, cell in cells.items():
            rows.setdefault(name, []).append(cell)
    return "\n".join(f"| {name} | {' | '.join(cells)} |" for name, cells in rows.items())


def _hours(shape: Shape, processors: int) -> float:
    """The stage's length: its work shared, plus the end of the longest task."""
    return max(shape.rounding_flops / processors, shape.longest_flops) / FLOPS / 3600


if __name__ == "__main__":
    main()
