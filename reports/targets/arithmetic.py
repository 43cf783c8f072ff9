"""ARM's arithmetic in torch beside MNN's aarch64 engine under emulation: losses of whole models.

``python -m reports.targets.arithmetic RUN --work FOLDER`` takes a run that was analyzed, plans ``int4`` for ``phone``,
and builds that plan and the uniform INT8 and INT4 that phones compute right, rounded to nearest. Each runs on the
emulated processors with both dynamic options, at precision high and low, in prefill and in decode, on the first
held-out tokens; torch computes the same. Needs ``qplan engines add arm``. Writes ``results.json`` below the folder
after every run of the engine, goes on from there, and prints a table in Markdown. What differs is told with its
standard error: a code on the edge between two may fall to either side, and what follows in the text reads it.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from qplan.choosing.option import setting
from qplan.choosing.parity import runnable_uniform
from qplan.choosing.request import PlanRequest
from qplan.choosing.sizes import fixed_bytes
from qplan.cost.target import find_target
from qplan.folding.analyzed import load_analyzed
from qplan.formats import QuantFormat
from qplan.jobs.skeletons import run_skeleton
from qplan.mnn.arm.home import require_arm
from qplan.mnn.arm.processors import find_processor
from qplan.mnn.build.writer import build_model
from qplan.mnn.engine.session import EngineSession
from qplan.mnn.runtime import RuntimeConfig
from qplan.model.load import LoadedModel
from qplan.planner.budget import Budget
from qplan.planner.planning import make_plan
from qplan.planner.rules import Rules
from qplan.rounding import EnginePath, Int8Activations
from qplan.rounding.rounder import Rounder
from qplan.rounding.run_rounder import run_rounder
from qplan.run.calibration import CalibrationSet
from qplan.run.folder import RunFolder
from qplan.run.table import SensitivityTable
from qplan.sensitivity.joint import Variant, variant_losses
from qplan.sensitivity.kept_logits import kept_logits
from qplan.sensitivity.metrics import TokenStats
from qplan.sensitivity.paired import change_of
from qplan.settings import DYNAMIC_OPTIONS, DynamicOption, Precision
from reports.targets.console import tell

Formats = Mapping[str, QuantFormat]
Tokens = NDArray[np.int64]
PATHS: tuple[EnginePath, ...] = get_args(EnginePath)
MODELS = ("plan", "int8", "int4")


def main() -> None:
    """Build, run, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--processors", default="arm-v8,arm-dot,arm-i8mm")
    parser.add_argument("--precisions", default="high,low")
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--seq-len", type=int, default=128)
    parser.add_argument("--steps", type=int, default=512, help="of these tokens, how many go one by one as well")
    parser.add_argument("--models", default=",".join(MODELS))
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    run = RunFolder(given.run)
    table = SensitivityTable.read(run.sensitivity)
    model = load_analyzed(run, table.model, tell)
    calibration = CalibrationSet.read(run.calibration)
    rules = Rules(target=find_target("phone"))
    rounder = run_rounder(
        run,
        model.loaded,
        calibration,
        table.conditions.rounding,
        within_int16=rules.target.adds_in_int16,
    )
    skeleton = run_skeleton(run, model.loaded, None, tell)
    under = setting(table, PlanRequest(budgets=(Budget.parse("int4"),), rules=rules), 0)
    limits = under.wanted.limits(under.table, run)
    plan = make_plan(
        under.table, under.wanted.budgets, fixed_bytes(skeleton, table.model), rules=under.wanted.rules, ceilings=limits
    )
    nearest = Rounder(model.loaded)
    models: dict[str, tuple[Formats, Rounder]] = {"plan": (plan.formats, rounder)}
    for bits in (8, 4):
        uniform = runnable_uniform(table, rules, bits)
        if uniform is not None:
            models[f"int{bits}"] = uniform, nearest
    rows = calibration.heldout[: given.rows, : given.seq_len]
    results = Results(given.work / "results.json")
    for label in given.models.split(","):
        formats, own = models[label]
        folder = given.work / label
        if not folder.is_dir():
            build_model(skeleton, table.model.tensors, formats, own.store, folder, replace=True)
        compare(results, label, Built(folder, model.loaded, formats, own), rows, given)
    print("\n".join(page(results.rows, model.loaded.folder.name, rows.shape, by_steps(rows, given.steps).size)))


def by_steps(rows: Tokens, tokens: int) -> Tokens:
    """The first tokens of ``rows [n, seq_len]``: whole rows, or the start of the first one."""
    length = rows.shape[1]
    return rows[:1, :tokens] if tokens < length else rows[: tokens // length]


class Results:
    """What was measured, kept after every run."""

    def __init__(self, path: Path) -> None:
        """Go on from what is there."""
        self.path = path
        self.rows: dict[str, dict[str, Any]] = json.loads(path.read_text()) if path.is_file() else {}

    def keep(self, key: str, row: dict[str, Any]) -> None:
        """Keep a result."""
        self.rows[key] = row
        self.path.write_text(json.dumps(self.rows, indent=1))


@dataclass(frozen=True)
class Built:
    """A built model and what it was built from."""

    folder: Path
    loaded: LoadedModel
    formats: Formats
    rounder: Rounder

    def predicted(self, tokens: Tokens, activations: Int8Activations) -> TokenStats:
        """What it loses in torch."""
        variants = {"": Variant(self.formats, "low", activations)}
        options: dict[str, Any] = {"batch_size": 1, "engine_embedding": True, "rounder": self.rounder}
        return variant_losses(self.loaded, torch.from_numpy(tokens), variants, **options)[""]


def compare(results: Results, label: str, built: Built, rows: Tokens, given: argparse.Namespace) -> None:
    """One built model on all processors, and in torch."""
    loaded = built.loaded
    processors = given.processors.split(",")
    home = require_arm(tuple(processors), "--processors")
    predicted: dict[tuple[Int8Activations, EnginePath], TokenStats] = {}
    for name in processors:
        for precision in given.precisions.split(","):
            for option in DYNAMIC_OPTIONS:
                wanted = [path for path in PATHS if _key(label, name, precision, option, path) not in results.rows]
                if not wanted:
                    continue
                runtime = RuntimeConfig("low", precision, dynamic_option=option)
                host = home.host(find_processor(name))
                with EngineSession(built.folder, runtime, context=loaded.card.context, host=host) as engine:
                    for path in wanted:
                        tokens = rows if path == "prefill" else by_steps(rows, given.steps)
                        run = engine.logits if path == "prefill" else engine.logits_stepwise
                        with kept_logits(loaded, tokens) as reference:
                            measured = reference.compare(run)
                        activations = _activations(name, precision, option, path)
                        if (activations, path) not in predicted:
                            predicted[activations, path] = built.predicted(tokens, activations)
                        row = _row(measured, predicted[activations, path], tokens.shape[1])
                        results.keep(_key(label, name, precision, option, path), row)
                        tell(_key(label, name, precision, option, path), row)


def _row(measured: TokenStats, predicted: TokenStats, seq_len: int) -> dict[str, float]:
    more = change_of(measured, predicted, seq_len)
    return {"engine_nats": measured.kl_nats, "torch_nats": predicted.kl_nats, "stderr_nats": more.stderr_nats}


def _activations(name: str, precision: Precision, option: DynamicOption, path: EnginePath) -> Int8Activations:
    return Int8Activations(path, option, find_target(name).arithmetics[precision])


def _key(label: str, processor: str, precision: str, option: int, path: str) -> str:
    return f"{label} | {processor} | {precision} | {option} | {path}"


def page(rows: Mapping[str, Mapping[str, float]], model: str, shape: tuple[int, ...], steps: int) -> Iterator[str]:
    """The table."""
    worst = max((abs(row["torch_nats"] / row["engine_nats"] - 1) for row in rows.values()), default=0.0)
    yield f"## {model}\n"
    yield (
        f"Prefill of {shape[0]} rows of {shape[1]} held-out tokens, decode of {steps} of them; KL to FP32, nats per "
        f"token; how much more torch loses, with its standard error. The largest difference is {worst:.0%}.\n"
    )
    yield "| model | processor | precision | option | prefill: engine | torch | | decode: engine | torch | |"
    yield "|---|---|---|---:|---:|---:|---:|---:|---:|---:|"
    for start in dict.fromkeys(key.rpartition(" | ")[0] for key in rows):
        cells = []
        for path in PATHS:
            row = rows.get(f"{start} | {path}")
            if row is None:
                cells += ["", "", ""]
            else:
                engine = row["engine_nats"]
                off, stderr = row["torch_nats"] / engine - 1, row["stderr_nats"] / engine
                cells += [f"{engine:.2e}", f"{row['torch_nats']:.2e}", f"{off:+.0%} ± {stderr:.0%}"]
        yield f"| {start} | {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
