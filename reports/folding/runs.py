"""Compares the folds of some runs of one model on a text, all rounded the same way.

Analyze the model once per fold, from the repository's root, and compare:

    qplan analyze MODEL --run A --effort quick --calib TEXT
    qplan analyze MODEL --run B --effort quick --calib TEXT --fold trained
    python -m reports.folding.runs A B --text TEST

Prints a table: losses of uniform INT8 and INT4, in nats per token, as torch computes them with the engine's arithmetic.
Every matrix is rounded by ``gptq`` with the moments of its run.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import torch

from qplan.calibration import load_text, tokenize
from qplan.folding.analyzed import load_analyzed
from qplan.rounding import Int8Activations
from qplan.rounding.run_rounder import run_rounder
from qplan.run.calibration import CalibrationSet
from qplan.run.folder import RunFolder
from qplan.run.table import SensitivityTable
from qplan.sensitivity.joint import Variant, variant_losses
from qplan.sensitivity.metrics import TokenStats
from qplan.settings import DynamicOption, Memory
from qplan.uniform import uniform_formats

_WAYS: dict[str, tuple[int, Memory, DynamicOption]] = {
    "INT8, low": (8, "low", 0),
    "INT8, low, option 2": (8, "low", 2),
    "INT8, normal": (8, "normal", 0),
    "INT4, low": (4, "low", 0),
    "INT4, normal": (4, "normal", 0),
}


def losses(run: RunFolder, text: str, tokens: int, seq_len: int, rounding: str) -> Iterator[tuple[str, TokenStats]]:
    """Losses of a run's model, by how it is computed."""
    loaded = load_analyzed(run, SensitivityTable.read(run.sensitivity).model, print).loaded
    judged = tokenize(
        load_text(text, loaded.tokenizer, print),
        loaded.tokenizer,
        samples=tokens // seq_len,
        seq_len=seq_len,
        seed=0,
        context=loaded.card.context,
        vocabulary=loaded.card.vocabulary,
    )
    rounder = run_rounder(run, loaded, CalibrationSet.read(run.calibration), rounding)
    variants = {
        name: Variant(uniform_formats(loaded.card, bits), memory, Int8Activations("prefill", option))
        for name, (bits, memory, option) in _WAYS.items()
    }
    yield from variant_losses(loaded, torch.from_numpy(judged.tokens), variants, rounder=rounder).items()


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    parser.add_argument("--text", required=True, help="text that nothing was fitted to")
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--seq-len", type=int, default=128)
    parser.add_argument("--rounding", default="gptq")
    options = parser.parse_args()
    print("| run | model | mean | median | p99 | most |\n|---|---|---|---|---|---|")
    for folder in options.runs:
        found = losses(RunFolder(folder), options.text, options.tokens, options.seq_len, options.rounding)
        for name, stats in found:
            kl = stats.kl
            numbers = (stats.kl_nats, float(kl.median()), float(kl.quantile(0.99)), float(kl.max()))
            print(f"| {folder.name} | {name} | " + " | ".join(f"{number:.2e}" for number in numbers) + " |", flush=True)


if __name__ == "__main__":
    main()
