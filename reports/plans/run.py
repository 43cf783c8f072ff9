"""Plans at 3 to 8 bits' worth of bytes against the uniform export and against the peers' plans, on MNN's engine.

Run from the repository's root with

    python -m reports.plans.run                                            # the embedded model
    python -m reports.plans.run --model FOLDER --calib FILE --text FILE    # another one

Installs ModelOpt, AutoRound, NNCF, mlx-lm and Quark into environments of their own (about 6.5 GB), adds the model to
``results.json`` and writes ``README.md`` beside it. About one hour for the embedded model, two for 8 M parameters.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from qplan.artifact import versions
from reports.peers.run import Bench, ask_all, cases_of, working_folder
from reports.peers.run import load as load_bench
from reports.peers.scorers import SCORERS
from reports.plans.page import write_page
from reports.plans.rivals import rivals
from reports.plans.shipped import shipped
from reports.plans.study import DEMO, MEMORIES, SAMPLES, SEQ_LEN, Study

HOME = Path(__file__).parent


def benchmark(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """All results of one model."""
    study = Study(options.model, options.calib, options.text, options.judged, folder)
    bench: Bench = load_bench(options, folder)
    answers, failures = ask_all(bench)
    loaded = bench.loaded
    return {
        "model": {"parameters": loaded.card.parameters, "tensors": len(loaded.card.tensors)},
        "calibration": Path(options.calib).name,
        "judged": {"text": Path(options.text).name, "tokens": options.judged * SEQ_LEN},
        "engine": versions()["MNN"],
        "failures": failures,
        "shipped": [asdict(row) for row in shipped(study, loaded)],
        "rivals": [asdict(row) for row in rivals(study, loaded, cases_of(bench, answers), options.peer_memories)],
    }


def parse() -> argparse.Namespace:
    """The command line."""

    def numbers(text: str) -> tuple[float, ...]:
        return tuple(float(part) for part in text.split(",") if part)

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(DEMO / "stdlib-3m"), help="Hugging Face folder")
    parser.add_argument("--calib", default="python-stdlib", help="text that peers and qplan score on")
    parser.add_argument("--text", default=str(DEMO / "heldout.txt"), help="text that plans are judged on")
    parser.add_argument("--judged", type=int, default=16, help="sequences that plans are judged on")
    parser.add_argument("--budgets", type=numbers, default=(4.5, 5.0, 6.0), help="mean bits of the peers' plans")
    parser.add_argument(
        "--scorers",
        type=lambda text: tuple(text.split(",")),
        default=tuple(scorer.name for scorer in SCORERS),
        help="the peers' ways of scoring",
    )
    parser.add_argument(
        "--peer-memories",
        type=lambda text: tuple(text.split(",")),
        default=MEMORIES,
        help="memory settings under which the peers are compared",
    )
    parser.add_argument(
        "--environments", type=Path, default=Path.home() / ".cache" / "qplan-peers", help="where peers are installed"
    )
    parser.add_argument("--work", type=Path, help="folder of runs and answers, kept and reused")
    parser.set_defaults(samples=SAMPLES, seq_len=SEQ_LEN)
    return parser.parse_args()


def main() -> None:
    """Run for one model."""
    options = parse()
    torch.set_num_threads(1)
    with working_folder(options.work) as folder:
        results = benchmark(options, folder)
    path = HOME / "results.json"
    everything = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    everything[Path(options.model).name] = results
    path.write_text(json.dumps(everything, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    write_page(everything, HOME / "README.md")


if __name__ == "__main__":
    main()
