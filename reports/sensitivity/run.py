"""Gradient and auto mode against measured mode: agreement, plans, time and memory.

Run from the repository's root with

    python -m reports.sensitivity.run                                      # the embedded model, a quarter of an hour
    python -m reports.sensitivity.run --model FOLDER --calib FILE          # another one
    python -m reports.sensitivity.run --rounding auto                      # with the integers that ship

Adds the model to ``results.json`` and writes ``README.md`` beside it. Times are those of the processor, one thread.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import qplan.demo
from qplan.calibration import load_text, tokenize
from qplan.cost.file_bytes import estimate_fixed
from qplan.errors import InfeasibleError
from qplan.formats import QuantFormat, parse_formats
from qplan.jobs.additivity import measure_additivity
from qplan.jobs.analyze import analyze
from qplan.model.load import LoadedModel, load_model
from qplan.planner.budget import Budget
from qplan.planner.planning import make_plan
from qplan.planner.rules import Rules
from qplan.rounding.rounder import Rounder
from qplan.rounding.run_rounder import run_rounder
from qplan.run.calibration import CalibrationSet
from qplan.run.folder import RunFolder
from qplan.run.table import SensitivityTable
from qplan.sensitivity.analysis import open_analysis
from qplan.sensitivity.joint import joint_losses
from qplan.sensitivity.metrics import reference_of
from qplan.settings import Mode
from reports.sensitivity.agreement import Agreement, agree, by_format
from reports.sensitivity.cost import (
    Cost,
    cost_of,
    forward,
    forward_and_loss,
    forward_backward,
    typical,
)
from reports.sensitivity.page import write_page

HOME = Path(__file__).parent
FORMATS = parse_formats("fp16,int8,int6,int5,int4,int3,int2")
"""Formats that all modes are compared on."""
TWELVE = parse_formats("fp16,int8,int8-b32,int6,int6-b32,int5,int5-b32,int4,int4-b32,int3,int3-b32,int2")
"""Formats that the time of gradient mode is taken with."""
BUDGETS = ("3.5bpw", "4bpw", "5bpw", "6bpw", "8bpw")
BATCH_SIZE = 4


@dataclass(frozen=True)
class PlanPoint:
    """The plan of one mode at one budget."""

    budget: str
    mode: Mode
    same: float
    """Share of tensors that have the same format in measured mode's plan."""
    calibration_ratio: float
    """Joint loss as a ratio to that of measured mode's plan, on the calibration tokens."""
    heldout_ratio: float
    """The same on held-out tokens."""


@dataclass(frozen=True)
class Subject:
    """The model that is analyzed, and how."""

    loaded: LoadedModel
    calibration: CalibrationSet
    rounder: Rounder | None
    """Chooses the integers; None rounds to nearest."""

    @property
    def tokens(self) -> Tensor:
        """Calibration tokens ``[samples, seq_len]``."""
        return torch.from_numpy(self.calibration.tokens)

    def analyze(self, mode: Mode, formats: Sequence[QuantFormat] = FORMATS) -> SensitivityTable:
        """Analyze in one mode from scratch."""
        opened = open_analysis(
            self.loaded, self.calibration, formats, "low", batch_size=BATCH_SIZE, rounder=self.rounder
        )
        with opened as analysis:
            return analyze(analysis, mode, print, lambda _done, _total: None)


def load(model: str, calib: str, samples: int, seq_len: int, fit_tokens: int = 0) -> tuple[LoadedModel, CalibrationSet]:
    """The model and its calibration tokens."""
    loaded = load_model(model)
    text = load_text(calib, loaded.tokenizer)
    card = loaded.card
    limits = {"samples": samples, "seq_len": seq_len, "context": card.context, "vocabulary": card.vocabulary}
    return loaded, tokenize(text, loaded.tokenizer, seed=0, fit_tokens=fit_tokens, **limits)


def costs(subject: Subject, keep: dict[Mode, SensitivityTable]) -> dict[str, Cost]:
    """Time of every mode and of the passes that it is compared with; leaves the tables in ``keep``."""
    loaded, tokens = subject.loaded, subject.tokens

    def passes(*, weights: bool) -> None:
        forward_backward(loaded, tokens, BATCH_SIZE, weights=weights)

    def analyze_and_keep(mode: Mode) -> None:
        keep[mode] = subject.analyze(mode)

    references = [reference_of(loaded.logits(batch), batch) for batch in tokens.split(BATCH_SIZE)]
    if subject.rounder is not None:
        analyze_and_keep("gradient")  # rounds everything, once
    works: dict[str, tuple[Callable[[], object], int]] = {
        "forward and backward": (lambda: passes(weights=True), 5),
        "forward and backward, activations only": (lambda: passes(weights=False), 5),
        "gradient, 12 formats": (lambda: subject.analyze("gradient", TWELVE), 3),
        "gradient": (lambda: analyze_and_keep("gradient"), 3),
        "auto": (lambda: analyze_and_keep("auto"), 1),
        "measured": (lambda: analyze_and_keep("measured"), 1),
    }
    spent: dict[str, Cost] = {}
    plain: list[Cost] = []
    compared: list[Cost] = []
    for name, (work, repeats) in works.items():
        # the machine's load may vary: the passes that everything is compared with are timed throughout
        plain.append(cost_of(lambda: forward(loaded, tokens, BATCH_SIZE), 5))
        compared.append(cost_of(lambda: forward_and_loss(loaded, tokens, references), 5))
        spent[name] = cost_of(work, repeats)
    return {"forward": typical(plain), "forward and loss": typical(compared)} | spent


def plan_points(subject: Subject, tables: dict[Mode, SensitivityTable]) -> list[PlanPoint]:
    """Joint losses of the plans that each mode leads to."""
    loaded, calibration = subject.loaded, subject.calibration
    fixed = estimate_fixed(loaded.card)
    plans: dict[tuple[str, Mode], dict[str, QuantFormat]] = {}
    for budget in BUDGETS:
        for mode, table in tables.items():
            try:
                plans[budget, mode] = make_plan(table, Budget.parse(budget), fixed, rules=Rules(logits_bits=0)).formats
            except InfeasibleError:
                print(f"{budget} is too small for any plan")
    labeled = {f"{budget} {mode}": formats for (budget, mode), formats in plans.items()}
    seen, held = (
        joint_losses(loaded, torch.from_numpy(ids), labeled, rounder=subject.rounder)
        for ids in (calibration.tokens, calibration.heldout)
    )
    points = []
    for (budget, mode), formats in plans.items():
        best, label, other = plans[budget, "measured"], f"{budget} {mode}", f"{budget} measured"
        same = sum(formats[name] == fmt for name, fmt in best.items()) / len(best)
        ratios = [joint[label].kl_nats / joint[other].kl_nats for joint in (seen, held)]
        points.append(PlanPoint(budget, mode, same, *ratios))
    return points


def random_plans(subject: Subject, tables: dict[Mode, SensitivityTable], count: int) -> dict[str, Agreement]:
    """Predicted against measured joint loss: sums of single losses, and sums times the additivity ratio."""
    generator = random.Random(0)
    plans = {}
    for index in range(count):
        widths = generator.sample(FORMATS, generator.randint(1, len(FORMATS)))
        plans[str(index)] = {
            spec.name: generator.choice([f for f in widths if f in formats] or formats)
            for spec in subject.loaded.card.tensors
            if (formats := list(tables["measured"].formats_of(spec.name)))
        }
    joint = joint_losses(subject.loaded, subject.tokens, plans, rounder=subject.rounder)
    lossy = [label for label, stats in joint.items() if stats.kl_nats > 0]
    found = {}
    for mode, table in tables.items():
        single = table.kl("low")
        sums = [sum(single[name][fmt.name] for name, fmt in plans[label].items()) for label in lossy]
        measured_losses = [joint[label].kl_nats for label in lossy]
        found[f"{mode}, sum"] = agree(sums, measured_losses)
        if table.joint:
            found[f"{mode}, with the additivity ratio"] = agree(
                [table.predict_joint(total) for total in sums], measured_losses
            )
    return found


def main() -> None:
    """Run for one model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=str(Path(qplan.demo.__file__).parent / "stdlib-3m"))
    parser.add_argument("--calib", default="python-stdlib")
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--seq-len", type=int, default=256)
    parser.add_argument("--plans", type=int, default=100)
    parser.add_argument("--rounding", default="rtn")
    parser.add_argument("--fit-tokens", type=int, default=32768, help="most tokens that --rounding is fitted to")
    options = parser.parse_args()
    torch.set_num_threads(1)
    loaded, calibration = load(options.model, options.calib, options.samples, options.seq_len, options.fit_tokens)
    with tempfile.TemporaryDirectory() as folder:
        rounder = run_rounder(RunFolder(Path(folder)), loaded, calibration, options.rounding)
        results = study(Subject(loaded, calibration, rounder), options.plans)
    results["calibration"] = {"text": Path(options.calib).name, "samples": options.samples, "seq_len": options.seq_len}
    path = HOME / "results.json"
    everything = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    everything[f"{Path(options.model).name}, rounding {options.rounding}"] = results
    path.write_text(json.dumps(everything, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    write_page(everything, HOME / "README.md")


def study(subject: Subject, plans: int) -> dict[str, Any]:
    """Everything about one model, ready for JSON."""
    tables: dict[Mode, SensitivityTable] = {}
    spent = costs(subject, tables)
    tables["auto"], tables["measured"] = (
        measure_additivity(tables[mode], subject.loaded, subject.tokens, rounder=subject.rounder)
        for mode in ("auto", "measured")
    )
    entries = {mode: [m.source for m in table.measurements] for mode, table in tables.items()}
    card = subject.loaded.card
    return {
        "model": {"parameters": card.parameters, "tensors": len(card.tensors)},
        "entries": len(entries["measured"]) // len({m.batch for m in tables["measured"].measurements}),
        "auto_measured_share": entries["auto"].count("measured") / len(entries["auto"]),
        "costs": {name: asdict(cost) for name, cost in spent.items()},
        "formats": [asdict(row) for row in by_format(tables["gradient"], tables["measured"])],
        "plans": [asdict(point) for point in plan_points(subject, tables)],
        "joint": {name: asdict(row) for name, row in random_plans(subject, tables, plans).items()},
        "additivity": [asdict(point) | {"ratio": point.ratio} for point in tables["measured"].joint],
    }


if __name__ == "__main__":
    main()
