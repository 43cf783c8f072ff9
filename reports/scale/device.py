"""Compares `qplan analyze` on a GPU with the CPU, and times it there: for a machine that is lent for minutes.

``python -m reports.scale.device --device cuda --work FOLDER --out FILE`` analyzes the embedded model, and every folder
given with ``--model``, on both by effort quick; then each ``--shape`` of `reports.scale.shapes` on the device alone,
small ones first. FILE is written after each of them, so that a machine taken away costs the last one only.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch

from qplan.artifact import versions
from qplan.jobs.analyze import run_analyze
from qplan.jobs.options import AnalyzeOptions
from qplan.run.folder import RunFolder
from qplan.run.table import SensitivityTable
from reports.effort.study import DEMO
from reports.scale.shapes import SHAPES, write_shape

_LEAST_NATS = 1e-9
"""Losses below this are float noise."""

Row = dict[str, Any]


def analyzed(model: Path, device: str, run: Path) -> tuple[SensitivityTable, Row]:
    """A model's table, and what it took."""
    on_gpu = device.startswith("cuda")
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(device)
    start, processor = time.monotonic(), time.process_time()
    options = AnalyzeOptions(model=str(model), device=device, effort="quick")
    table = run_analyze(options, RunFolder(run), print, lambda *_: None)
    row: Row = {"device": device, "seconds": time.monotonic() - start, "processor_s": time.process_time() - processor}
    if on_gpu:
        row["gpu_bytes"] = torch.cuda.max_memory_allocated(device)
    return table, row


def differences(here: SensitivityTable, there: SensitivityTable) -> Row:
    """How far losses of the same cells are apart, relative to the first table's."""
    losses = [
        {(m.tensor, m.format, m.memory): m.kl_nats for m in table.measurements if m.batch == here.measurements[0].batch}
        for table in (here, there)
    ]
    same = [cell for cell, nats in losses[0].items() if cell in losses[1] and nats > _LEAST_NATS]
    apart = torch.tensor([abs(losses[1][cell] / losses[0][cell] - 1) for cell in same], dtype=torch.float64)
    return {
        "cells": len(same),
        "median": float(apart.median()),
        "p99": float(apart.quantile(0.99)),
        "most": float(apart.max()),
        "sum": sum(losses[1][cell] for cell in same) / sum(losses[0][cell] for cell in same),
    }


def main() -> None:
    """Compare, then time."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", type=Path, action="append", default=[], help="folder of a model to compare on")
    parser.add_argument("--shape", choices=sorted(SHAPES), action="append", default=[], help="to time on the device")
    given = parser.parse_args()
    found: Row = {"versions": versions(), "compared": {}, "timed": {}}

    def keep() -> None:
        given.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")

    for model in (DEMO / "stdlib-3m", *given.model):
        there, gpu = analyzed(model, given.device, given.work / f"{model.name}-device")
        here, cpu = analyzed(model, "cpu", given.work / f"{model.name}-cpu")
        found["compared"][model.name] = {"runs": [cpu, gpu], "apart": differences(here, there)}
        keep()
    for shape in given.shape:
        folder = given.work / shape
        write_shape(shape, folder)
        found["timed"][shape] = analyzed(folder, given.device, given.work / f"{shape}-device")[1]
        keep()


if __name__ == "__main__":
    main()
