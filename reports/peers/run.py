"""The peers' plans against qplan's at equal bytes, and the time and memory of each planner.

Run from the repository's root with

    python -m reports.peers.run                                            # the embedded model
    python -m reports.peers.run --model FOLDER --calib FILE --text FILE    # another one
    python -m reports.peers.run --model SMOLLM2 --calib FILE --text FILE --samples 4 --judged 4 --budgets 4.5,6 \
        --engine 4.5 --scorers modelopt-gradient,autoround,nncf,mlx,quark --modes gradient --fitted-modes ''

Installs ModelOpt, AutoRound, NNCF, mlx-lm and Quark into environments of their own (about 6.5 GB), adds the model to
``results.json`` and writes ``README.md`` beside it. Times are those of the processor, one thread.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import qplan.demo
from qplan.artifact import versions
from qplan.calibration import load_text, tokenize
from qplan.cost.file_bytes import FixedBytes, estimate_fixed
from qplan.errors import ToolError
from qplan.model.load import LoadedModel, load_model
from qplan.rounding.rounder import Rounder
from qplan.rounding.run_rounder import run_rounder
from qplan.run.calibration import CalibrationSet
from qplan.run.folder import RunFolder
from qplan.sensitivity.kept_logits import kept_logits
from qplan.settings import Mode
from reports.peers.engine import open_skeleton, run_on_engine
from reports.peers.judge import MEMORIES, Verdict, entries, judge
from reports.peers.page import MODES, write_page
from reports.peers.plans import Case, case_of
from reports.peers.score.job import Answer, Job
from reports.peers.scorers import SCORERS, ask
from reports.peers.tables import BATCH_SIZE, Shelf
from reports.sensitivity.cost import cost_of, forward, forward_backward

HOME = Path(__file__).parent
DEMO = Path(qplan.demo.__file__).parent
FIT_TOKENS = 32768
"""Number of tokens that rounding is fitted to, as in `qplan analyze`."""


@dataclass(frozen=True)
class Bench:
    """What one run of the benchmark works on."""

    options: argparse.Namespace
    loaded: LoadedModel
    calibration: CalibrationSet
    heldout: torch.Tensor
    """int64 ``[judged, seq_len]``."""
    folder: Path

    @property
    def fixed(self) -> FixedBytes:
        """Bytes that ship whatever the plan."""
        return estimate_fixed(self.loaded.card)

    @property
    def shelf(self) -> Shelf:
        """Where qplan's tables are made and kept."""
        return Shelf(self.loaded, self.calibration, self.folder)

    def rounders(self) -> list[tuple[Rounder, tuple[Mode, ...]]]:
        """The roundings, and the modes whose plans are judged with each."""
        nearest = Rounder(self.loaded), self.options.modes
        if not self.options.fitted_modes:
            return [nearest]
        run = RunFolder(self.folder / f"run-{self.loaded.card.sha256[:8]}-{self.calibration.sha256[:8]}")
        return [nearest, (run_rounder(run, self.loaded, self.calibration, "auto"), self.options.fitted_modes)]


def ask_all(bench: Bench) -> tuple[dict[str, Answer], dict[str, str]]:
    """The peers' answers, or their errors, by scorer."""
    options = bench.options
    tokens = bench.folder / f"tokens-{bench.calibration.sha256[:12]}.npy"
    np.save(tokens, bench.calibration.tokens)
    job = Job(str(bench.loaded.folder.resolve()), str(tokens.resolve()), options.budgets, BATCH_SIZE)
    answers, failures = {}, {}
    for scorer in SCORERS:
        if scorer.name not in options.scorers:
            continue
        print(f"{scorer.label} scores")
        try:
            answers[scorer.label] = ask(scorer, job, options.environments, bench.folder)
        except ToolError as error:
            # the page names a peer that does not run here; the others are compared
            print(error)
            failures[scorer.label] = str(error)
    return answers, failures


def cases_of(bench: Bench, answers: dict[str, Answer]) -> list[Case]:
    """The peers' plans in qplan's formats."""
    return [
        case_of(scorer, float(budget), widths, bench.loaded.card, bench.fixed)
        for scorer in SCORERS
        if scorer.label in answers
        for budget, widths in answers[scorer.label].plans.items()
    ]


def costs(bench: Bench, answers: dict[str, Answer]) -> dict[str, dict[str, Any]]:
    """Processor seconds and memory of every planner, and of the passes that they are compared with."""
    tokens = torch.from_numpy(bench.calibration.tokens)
    forward(bench.loaded, tokens, BATCH_SIZE)
    ours: dict[str, Any] = {
        "forward": cost_of(lambda: forward(bench.loaded, tokens, BATCH_SIZE), 5),
        "forward and backward": cost_of(lambda: forward_backward(bench.loaded, tokens, BATCH_SIZE, weights=True), 5),
    }
    ours |= {f"qplan {mode}, 7 formats, both memories": bench.shelf.cost(mode) for mode in bench.options.modes}
    theirs = {
        f"{label}, 2 formats": asdict(answer.spent) | {"forward_s": answer.forward_s}
        for label, answer in answers.items()
    }
    return {name: asdict(cost) for name, cost in ours.items()} | theirs


def verdicts(bench: Bench, cases: list[Case]) -> list[Verdict]:
    """Every plan under both memory settings and both roundings, in torch."""
    found = []
    for rounder, modes in bench.rounders():
        for memory in MEMORIES:
            plans = entries(cases, bench.shelf, modes, memory, rounder=rounder, fixed=bench.fixed)
            found += judge(plans, bench.heldout, memory, rounder=rounder, fixed=bench.fixed)
    return found


def on_engine(bench: Bench, cases: list[Case]) -> list[Verdict]:
    """The plans of some budgets on the engine."""
    budgets = bench.options.engine
    if not budgets:
        return []
    cases = [case for case in cases if case.budget in budgets]
    skeleton = open_skeleton(bench.loaded, bench.folder)
    found = []
    with kept_logits(bench.loaded, bench.heldout.numpy()) as reference:
        for rounder, modes in bench.rounders():
            for memory in MEMORIES:
                plans = entries(cases, bench.shelf, modes[-1:], memory, rounder=rounder, fixed=bench.fixed)
                found += run_on_engine(plans, skeleton, reference, memory, rounder=rounder, folder=bench.folder)
    return found


def load(options: argparse.Namespace, folder: Path) -> Bench:
    """The model, its calibration tokens and its held-out tokens."""
    loaded = load_model(options.model)
    card, tokenizer = loaded.card, loaded.tokenizer
    limits = {"seq_len": options.seq_len, "context": card.context, "vocabulary": card.vocabulary}
    calibration, judged = (
        tokenize(load_text(text, tokenizer), tokenizer, samples=samples, seed=0, fit_tokens=FIT_TOKENS, **limits)
        for text, samples in ((options.calib, options.samples), (options.text, options.judged))
    )
    return Bench(options, loaded, calibration, torch.from_numpy(judged.tokens), folder)


def _installed(answers: Iterable[Answer]) -> dict[str, str]:
    """Versions of packages, those that peers do not share one after the other."""
    found: dict[str, dict[str, None]] = {}
    for answer in answers:
        for name, number in answer.versions.items():
            found.setdefault(name, {})[number] = None
    return {name: " and ".join(numbers) for name, numbers in found.items()}


def benchmark(bench: Bench) -> dict[str, Any]:
    """All results of one model."""
    options, card = bench.options, bench.loaded.card
    answers, failures = ask_all(bench)
    cases = cases_of(bench, answers)
    return {
        "model": {"parameters": card.parameters, "tensors": len(card.tensors)},
        "calibration": {"text": Path(options.calib).name, "samples": options.samples, "seq_len": options.seq_len},
        "heldout": {"text": Path(options.text).name, "tokens": bench.heldout.numel()},
        "versions": _installed(answers.values()) | {"MNN": versions()["MNN"]},
        "methods": {label: answer.method for label, answer in answers.items()},
        "failures": failures,
        "cases": [asdict(case) | {"formats": {n: f.name for n, f in case.formats.items()}} for case in cases],
        "costs": costs(bench, answers),
        "verdicts": [asdict(verdict) for verdict in verdicts(bench, cases)],
        "engine": [asdict(verdict) for verdict in on_engine(bench, cases)],
    }


@contextmanager
def working_folder(kept: Path | None) -> Iterator[Path]:
    """A folder for answers and tables: a temporary one, or one that later runs continue with."""
    if kept is None:
        with tempfile.TemporaryDirectory(prefix="qplan-peers-") as folder:
            yield Path(folder)
        return
    kept.mkdir(parents=True, exist_ok=True)
    yield kept


def parse() -> argparse.Namespace:
    """The command line."""

    def numbers(text: str) -> tuple[float, ...]:
        return tuple(float(part) for part in text.split(",") if part)

    def names(text: str) -> tuple[str, ...]:
        return tuple(part for part in text.split(",") if part)

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(DEMO / "stdlib-3m"), help="Hugging Face folder")
    parser.add_argument("--calib", default="python-stdlib", help="text that peers and qplan score on")
    parser.add_argument("--text", default=str(DEMO / "heldout.txt"), help="text that plans are judged on")
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--judged", type=int, default=8, help="sequences that plans are judged on")
    parser.add_argument("--seq-len", type=int, default=256)
    parser.add_argument("--budgets", type=numbers, default=(4.5, 5.0, 6.0), help="mean bits of the peers' plans")
    parser.add_argument("--scorers", type=names, default=tuple(scorer.name for scorer in SCORERS))
    parser.add_argument("--modes", type=names, default=MODES, help="qplan's modes to judge with rounding to nearest")
    parser.add_argument(
        "--fitted-modes", type=names, default=MODES, help="qplan's modes to judge with rounding auto; '' for none"
    )
    parser.add_argument("--engine", type=numbers, default=(), help="budgets whose plans are built and run on MNN too")
    parser.add_argument(
        "--environments", type=Path, default=Path.home() / ".cache" / "qplan-peers", help="where peers are installed"
    )
    parser.add_argument("--work", type=Path, help="folder of answers and tables, kept and reused")
    return parser.parse_args()


def main() -> None:
    """Run for one model."""
    options = parse()
    torch.set_num_threads(1)
    with working_folder(options.work) as folder:
        results = benchmark(load(options, folder))
    path = HOME / "results.json"
    everything = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    everything[Path(options.model).name] = results
    path.write_text(json.dumps(everything, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    write_page(everything, HOME / "README.md")


if __name__ == "__main__":
    main()
