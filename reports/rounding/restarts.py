"""What trying the rounding of a tensor again gains, by the number of times: loss of single tensors, and time.

Run from the repository's root with

    python -m reports.rounding.restarts                       # the embedded model
    python -m reports.rounding.restarts --model FOLDER --wikitext FOLDER

Blocks of 64, asymmetric; the linears of the middle layer. Losses are what rounding errors do to a linear's outputs, on
16,384 tokens that they were fitted to and on 4,096 others, relative to one try. Writes ``restarts-MODEL.md`` beside
this file.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from qplan.formats import QuantFormat
from qplan.rounding import StoredTensor
from qplan.rounding.curvature import Curvature
from qplan.rounding.gptq import gptq
from reports.rounding.subject import BLOCK, Subject, load_subject

HOME = Path(__file__).parent
FIT_TOKENS = 16384
WIDTHS = (8, 4, 3, 2)
TIMES = (0, 2, 8, 32, 128, 512)


def output_error(weight: Tensor, stored: StoredTensor, moments: Tensor) -> float:
    """Squares of errors at a linear's outputs, summed over them: ``tr(E H E')``."""
    error = weight - stored.dequantize()
    return float(torch.linalg.vecdot(error @ moments, error).sum())


def measured(subject: Subject) -> Iterator[tuple[int, str, list[float], list[float], list[float]]]:
    """Width, tensor, and for each number of tries the losses on both sets of tokens and the seconds."""
    loaded, domain = subject.loaded, subject.domains[subject.home]
    middle = len(loaded.layers) // 2
    with tempfile.TemporaryDirectory() as folder:
        fit, judge = (
            subject.moments(tokens, Path(folder) / name)
            for name, tokens in (("fit", domain.fit), ("judge", domain.judge))
        )
        for bits in WIDTHS:
            for spec in loaded.card.tensors:
                if spec.layer != middle:
                    continue
                weight = loaded.weight(spec.name).to(torch.float32)
                curvature, others = Curvature(fit.of(spec.name)), judge.of(spec.name)
                curvature.ordered(BLOCK)
                seen, unseen, took = [], [], []
                for times in TIMES:
                    start = time.process_time()
                    stored = gptq(weight, QuantFormat(bits, BLOCK), curvature, restarts=times)
                    took.append(time.process_time() - start)
                    seen.append(output_error(weight, stored, curvature.moments))
                    unseen.append(output_error(weight, stored, others))
                yield bits, spec.kind, seen, unseen, took


def page(subject: Subject, name: str) -> str:
    """The report."""
    heads = " | ".join(f"{times}" for times in TIMES[1:])
    lines = [
        f"# Rounding tried again: {name}",
        "",
        (
            "Written by `python -m reports.rounding.restarts`. Errors at the outputs of the middle layer's linears, "
            "asymmetric blocks of 64, relative to one try, by the number of times that rounding is tried again: on the "
            f"{FIT_TOKENS:,} tokens fitted to, in brackets on 4,096 others. Seconds of one processor are those of one "
            f"try, and of {TIMES[-1]} more."
        ),
        "",
        f"| bits | tensor | {heads} | s |",
        f"|---|---|{'---|' * len(TIMES)}",
    ]
    for bits, kind, seen, unseen, took in measured(subject):
        pairs = [f"{one / seen[0]:.3f} ({other / unseen[0]:.3f})" for one, other in zip(seen, unseen, strict=True)]
        lines.append(f"| {bits} | {kind} | {' | '.join(pairs[1:])} | {took[0]:.2f}, {took[-1]:.1f} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure one model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="Hugging Face folder; the embedded model without")
    parser.add_argument("--wikitext", type=Path, help="folder with valid.txt and test.txt")
    given = parser.parse_args()
    torch.set_num_threads(1)
    name = "embedded" if given.model is None else given.model.name
    subject = load_subject(given.model, FIT_TOKENS, given.wikitext)
    (HOME / f"restarts-{name}.md").write_text(page(subject, name), encoding="utf-8")


if __name__ == "__main__":
    main()
