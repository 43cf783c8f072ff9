"""Exports a model, builds it in int4 and runs it on the engine within a limit on memory; times and weighs each stage.

``python -m reports.scale.engine MODEL --work FOLDER --max-memory 10GB``, after ``python -m reports.scale.shapes``. The
part of `qplan emit` that needs the engine, without an analysis before: what `reports.scale.run` does whole.
"""

from __future__ import annotations

import argparse
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from qplan.artifact import write_text
from qplan.mnn.build.exporter import export_skeleton
from qplan.mnn.engines import EngineTarget, EngineVersion
from qplan.mnn.runtime import RuntimeConfig
from qplan.model.load import load_model
from qplan.notes import text_note
from qplan.planner.size import Size
from qplan.rounding.rounder import Rounder
from qplan.sensitivity.kept_logits import kept_logits
from qplan.uniform import uniform_formats
from qplan.verify.bench import BuildBench
from qplan.verify.checks import emulation, exact_logits
from qplan.verify.engine_memory import EngineMemory
from qplan.verify.measure import Trial, measure_model
from qplan.verify.prove import gate


@dataclass
class Weighing:
    """Follows the memory of this process and its children."""

    stages: dict[str, dict[str, float]] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time and weigh the block."""
        root, ended, peak = psutil.Process(), threading.Event(), [0]

        def follow() -> None:
            while not ended.wait(0.2):
                peak[0] = max(peak[0], sum(map(_resident, (root, *root.children(recursive=True)))))

        thread = threading.Thread(target=follow)
        start, cpu = time.monotonic(), _processor_s(root)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
        seconds, busy = time.monotonic() - start, _processor_s(root) - cpu
        self.stages[name] = {"seconds": round(seconds), "processor_s": round(busy), "peak_gb": round(peak[0] / 1e9, 2)}
        print(name, self.stages[name], flush=True)  # noqa: T201


def _resident(process: psutil.Process) -> int:
    """Resident bytes, with pages that processes share counted in parts."""
    try:
        return int(process.memory_full_info().pss)
    except psutil.Error:
        return 0


def _processor_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system + times.children_user + times.children_system)


def run(model: Path, work: Path, limit_bytes: int, rows: int, seq_len: int) -> dict[str, Any]:
    """Every stage, in the order of `qplan emit`."""
    weighing, found = Weighing(), dict[str, Any]()
    with weighing.stage("load"):
        loaded = load_model(str(model), stream=True)
    with weighing.stage("export"):
        skeleton = export_skeleton(model, work / "skeleton", replace=True, max_memory_bytes=limit_bytes)
    found["skeleton_bytes"] = sum(512 * path.stat().st_blocks for path in (work / "skeleton").iterdir())
    tokens = np.random.default_rng(0).integers(0, 4096, (rows, seq_len))
    with kept_logits(loaded, tokens) as reference:
        trial = Trial(reference, decode_rows=1, prompt_tokens=32, decode_tokens=8, repeats=2)
        bench = BuildBench(
            loaded=loaded,
            skeleton=skeleton,
            trial=trial,
            text=text_note("random tokens"),
            text_sha256="",
            baselines=work,
            say=lambda line: print(line, flush=True),  # noqa: T201
            target=EngineTarget.of(EngineVersion.installed()),
            memory=EngineMemory.beside_this_process(loaded.card, seq_len, limit_bytes),
        )
        with weighing.stage("gate"):
            checks = list(gate(bench))
        formats, rounder = uniform_formats(loaded.card, 4), Rounder(loaded)
        with weighing.stage("build"):
            bench.build(formats, work / "int4", RuntimeConfig())
        with weighing.stage("logits"):
            layers = bench.layers(formats)
            with bench.first_layers(work / "int4", layers) as engine:
                checks.append(exact_logits("int4", engine, formats, rounder, bench.token_ids, layers=layers))
        with weighing.stage("engine"):
            memories = bench.settings(formats)
            built = measure_model(
                "int4", work / "int4", formats, rounder=rounder, trial=trial, say=bench.say, memories=memories
            )
        checks += emulation(built, loaded.card)
    found["checks"] = [f"{check.name}: {check.detail}: {'kept' if check.passed else 'BROKEN'}" for check in checks]
    found["ram_bytes"] = None if built.speed is None else built.speed.ram_bytes
    found["files_bytes"] = built.files.total
    return {"stages": weighing.stages, **found}


def main() -> None:
    """Run it, and write what was found beside the model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--max-memory", default="10GB")
    parser.add_argument("--rows", type=int, default=2)
    parser.add_argument("--seq-len", type=int, default=64)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    limit = int(Size.parse(options.max_memory, "--max-memory").bytes)
    found = run(options.model, options.work, limit, options.rows, options.seq_len)
    write_text(options.work / "engine.json", json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))  # noqa: T201


if __name__ == "__main__":
    main()
