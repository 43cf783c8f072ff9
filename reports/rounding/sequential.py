"""Integers fitted in order, and scales trained end to end after that, beside ``auto``: loss by width.

Run from the repository's root with

    python -m reports.rounding.sequential --shared FOLDER           # FOLDER/models/qwen2-8m, FOLDER/data/wikitext2

All linears of the decoder at one width, asymmetric blocks of 64, the head in fp16; fitted to 16,384 tokens of
``valid.txt``, judged by the KL on 6,144 tokens of ``test.txt`` and of Python's sources, to which nothing was fitted.
With ``--train``, scales are trained after that, under the memory setting that losses are of, as `qplan emit` does.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qplan.calibration import load_text
from qplan.formats import QuantFormat
from qplan.model.load import LoadedModel, load_model
from qplan.rounding import Int8Activations
from qplan.rounding.moments import Moments, gather_moments
from qplan.rounding.rounder import Rounder
from qplan.rounding.stored_cache import FittedTensors, StoredCache
from qplan.sensitivity.joint import Variant, joint_losses
from qplan.settings import MEMORIES, Memory
from qplan.tuning.kept import HELD_OUT, IN_ORDER
from qplan.tuning.scales import ScaleFit
from qplan.tuning.schedule import Schedule
from qplan.tuning.sequential import SequentialFit
from reports.rounding.subject import SEQ_LEN, decoder_formats, windows_of

FIT_TOKENS, JUDGE_ROWS, TEST_ROWS = 16384, 16, 24
WIDTHS = (8, 4, 3, 2)


@dataclass(frozen=True)
class Bench:
    """A model, and the tokens of the comparison, ``[rows, SEQ_LEN]`` each."""

    loaded: LoadedModel
    fit: Tensor
    tests: dict[str, Tensor]
    """By kind of text."""
    held_out: Tensor
    """Tokens that tell which scales are kept."""
    moments: Moments
    judge: Moments
    work: Path

    def by_width(
        self, widths: tuple[int, ...], memory: Memory, seen: tuple[Memory, ...], *, train: bool
    ) -> Iterator[dict[str, Any]]:
        """Losses under a memory setting: to nearest, ``auto``, and in order with inputs as of memory settings."""
        for bits in widths:
            formats = decoder_formats(self.loaded, bits)
            cache = StoredCache(self.work / f"auto-{bits}", {"rounding": "auto"})
            auto = Rounder(self.loaded, "auto", self.moments, self.judge, cache)
            rounders = {"rtn": Rounder(self.loaded), "auto": auto}
            seconds = {}
            for inputs in seen:
                plan = Variant(formats, inputs, Int8Activations())
                kept = StoredCache(self.work / f"fitted-{bits}-{inputs}", IN_ORDER)
                fit = SequentialFit(auto, plan, self.fit, kept)
                start = time.process_time()
                fit.run()
                label = "sequential" if inputs == memory else f"sequential, inputs of memory {inputs}"
                seconds[label] = time.process_time() - start
                rounders[label] = replace(auto, fitted=FittedTensors(kept, fit.formats))
                if train:
                    start = time.process_time()
                    rounders[f"{label}+scales"] = self.trained(rounders[label], formats, memory, f"{bits}-{inputs}")
                    seconds[f"{label}+scales"] = time.process_time() - start
            for label, rounder in rounders.items():
                found = {
                    kind: joint_losses(self.loaded, tokens, {"": formats}, memory, rounder=rounder)[""].kl_nats
                    for kind, tokens in self.tests.items()
                }
                yield {"bits": bits, "memory": memory, "integers": label, "kl_nats": found, "s": seconds.get(label)}

    def trained(self, rounder: Rounder, formats: dict[str, QuantFormat], memory: Memory, name: str) -> Rounder:
        """Train the scales of a rounder's integers."""
        plan = Variant(formats, memory, Int8Activations())
        kept = StoredCache(self.work / f"trained-{name}-{memory}", IN_ORDER | {"rounding": "scales"})
        schedule = Schedule.of(len(self.fit), len(self.held_out), SEQ_LEN)
        fit = ScaleFit(rounder, plan, torch.cat([self.fit, self.held_out]), kept, schedule)
        fit.run()
        return replace(rounder, fitted=FittedTensors(kept, fit.formats))


def load_bench(model: Path, data: Path, work: Path, fit_tokens: int = FIT_TOKENS) -> Bench:
    """Load a model and cut texts into windows."""
    loaded = load_model(str(model))
    windows = windows_of(loaded)
    valid = windows(load_text(str(data / "valid.txt"), loaded.tokenizer), samples=JUDGE_ROWS, fit_tokens=fit_tokens)
    texts = {"prose": str(data / "test.txt"), "code": "python-stdlib"}
    tests = {
        kind: torch.from_numpy(windows(load_text(text, loaded.tokenizer), samples=TEST_ROWS).tokens)
        for kind, text in texts.items()
    }
    fit, judge = torch.from_numpy(valid.fit), torch.from_numpy(valid.tokens)

    def moments(name: str, tokens: Tensor) -> Moments:
        return gather_moments(loaded, tokens, work / name, inputs={"rows": str(len(tokens))})

    return Bench(loaded, fit, tests, judge[HELD_OUT], moments("fit", fit), moments("judge", judge), work)


def main() -> None:
    """Run the comparison and print a line of JSON for each row."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shared", type=Path, required=True)
    parser.add_argument("--model", default="qwen2-8m", help="a folder of FOLDER/models")
    parser.add_argument("--widths", type=int, nargs="+", default=WIDTHS)
    parser.add_argument("--memory", choices=MEMORIES, default="normal", help="setting that losses are of")
    parser.add_argument("--seen", choices=MEMORIES, nargs="+", help="settings whose inputs are fitted to")
    parser.add_argument("--fit-tokens", type=int, default=FIT_TOKENS)
    parser.add_argument("--train", action="store_true", help="also train scales")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        data = given.shared / "data" / "wikitext2"
        bench = load_bench(given.shared / "models" / given.model, data, Path(work), given.fit_tokens)
        seen = tuple(given.seen or (given.memory,))
        for row in bench.by_width(tuple(given.widths), given.memory, seen, train=given.train):
            print(json.dumps(row), flush=True)  # noqa: T201 - its output


if __name__ == "__main__":
    main()
