"""Roundings of qplan and of its peers on the same calibration tokens: loss by width on three kinds of text.

Run from the repository's root with

    python -m reports.rounding.compared --shared FOLDER                # FOLDER/models/qwen2-8m, FOLDER/data/wikitext2
    python -m reports.rounding.compared --shared FOLDER --fit prose    # fitted to prose alone

All linears of the decoder at one width, asymmetric blocks of 64, the head in fp16, memory normal. Kinds of text are
*prose* (WikiText-2), *code* (``calib/python-stdlib``) and *documentation* (what Python's ``help`` says of the
language); the mixture has a third of each. Losses are those on 6,144 tokens of each kind to which nothing was fitted.
AutoRound is installed into an environment of its own (about 2 GB) and quantizes in FP32 on one thread: 200 steps of 8
rows, its default, and with ``--best`` 1,000 steps of its extended algorithm too. Prints a line of JSON for each row.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from qplan.calibration import load_text
from qplan.errors import ToolError
from qplan.formats import QuantFormat
from qplan.model.load import LoadedModel, load_model
from qplan.model.replace import with_weights
from qplan.rounding import Int8Activations
from qplan.rounding.moments import gather_moments
from qplan.rounding.rounder import Rounder
from qplan.rounding.stored_cache import FittedTensors, StoredCache
from qplan.sensitivity.joint import Variant, joint_losses
from qplan.sensitivity.kept_logits import kept_logits
from qplan.tuning.scales import ScaleFit
from qplan.tuning.schedule import STEPS_OF_FULL, Schedule
from qplan.tuning.sequential import SequentialFit
from qplan.verify.reference import torch_logits
from reports.peers.environment import prepare
from reports.rounding.subject import BLOCK, JUDGE_ROWS, SEQ_LEN, decoder_formats, windows_of

ROOT = Path(__file__).parents[2]
FIT_TOKENS, TEST_ROWS = 32768, 24
WIDTHS = (4, 3, 2, 8)
KINDS = ("prose", "code", "documentation")
TIMEOUT_S = 4 * 3600


@dataclass(frozen=True)
class Texts:
    """Tokens ``[rows, SEQ_LEN]`` of one kind of text; no token is in two of them."""

    fit: Tensor
    judge: Tensor
    held_out: Tensor
    """By which training of scales ends."""
    test: Tensor


@dataclass(frozen=True)
class Recipe:
    """How AutoRound is run."""

    name: str
    steps: int
    extended: bool


RECIPES = (Recipe("AutoRound, default", 200, extended=False), Recipe("AutoRound, best", 1000, extended=True))


@dataclass(frozen=True)
class Comparison:
    """A model, what roundings are fitted to, and what they are tested on."""

    loaded: LoadedModel
    fit: Tensor
    judge: Tensor
    held_out: Tensor
    tests: Mapping[str, Tensor]
    work: Path
    environments: Path

    def rows(self, bits: int, recipes: tuple[Recipe, ...]) -> Iterator[dict[str, Any]]:
        """Every rounding's losses and processor seconds at one width."""
        formats = decoder_formats(self.loaded, bits)
        yield {"rounding": "rtn"} | self.losses(Rounder(self.loaded), formats)
        cache = StoredCache(self.work / f"hqq-{bits}", {"rounding": "llmexport-hqq"})
        yield {"rounding": "llmexport --hqq"} | self.losses(Rounder(self.loaded, "llmexport-hqq", cache=cache), formats)
        cache = StoredCache(self.work / f"auto-{bits}", {"rounding": "auto"})
        fit, judge = (
            gather_moments(self.loaded, tokens, self.work / name, inputs={"rows": str(len(tokens))})
            for name, tokens in (("fit", self.fit), ("judge", self.judge))
        )
        auto = Rounder(self.loaded, "auto", fit, judge, cache)
        yield {"rounding": "qplan, auto"} | self.losses(auto, formats)
        plan = Variant(formats, "normal", Int8Activations())
        rounder = auto
        for trains, told in ((False, "qplan, in order"), (True, "qplan, in order, layers trained")):
            kept = StoredCache(self.work / f"ordered-{bits}-{trains}", {"rounding": told})
            ordered = SequentialFit(auto, plan, self.fit, kept, trains=trains)
            start = time.process_time()
            ordered.run()
            spent = {"s": time.process_time() - start}
            rounder = replace(auto, fitted=FittedTensors(ordered.cache, ordered.formats))
            yield {"rounding": told} | spent | self.losses(rounder, formats)
        schedule = Schedule.of(len(self.fit), len(self.held_out), SEQ_LEN, most=STEPS_OF_FULL)
        kept = StoredCache(self.work / f"trained-{bits}", {"rounding": "trained"})
        trained = ScaleFit(rounder, plan, torch.cat([self.fit, self.held_out]), kept, schedule)
        start = time.process_time()
        trained.run()
        spent = {"s": time.process_time() - start, "passes": schedule.tokens.passes(self.fit.numel())}
        found = self.losses(replace(auto, fitted=FittedTensors(kept, trained.formats)), formats)
        yield {"rounding": "qplan, then all scales trained"} | spent | found
        for recipe in recipes:
            weights, seconds = self.autoround(bits, recipe)
            yield {"rounding": recipe.name, "s": seconds} | self.losses_of(weights)

    def losses(self, rounder: Rounder, formats: Mapping[str, QuantFormat]) -> dict[str, float]:
        """KL in nats per token by kind of text."""
        return {
            kind: joint_losses(self.loaded, tokens, {"": formats}, "normal", rounder=rounder)[""].kl_nats
            for kind, tokens in self.tests.items()
        }

    def losses_of(self, weights: Mapping[str, Tensor]) -> dict[str, float]:
        """The same with weights that another tool made."""
        found = {}
        for kind, tokens in self.tests.items():
            with kept_logits(self.loaded, tokens.numpy()) as reference, with_weights(self.loaded, weights):
                found[kind] = reference.compare(lambda ids: torch_logits(self.loaded, ids)).kl_nats
        return found

    def autoround(self, bits: int, recipe: Recipe) -> tuple[dict[str, Tensor], float]:
        """What AutoRound makes of the same tokens, and its processor seconds.

        Raises:
            ToolError: it cannot be installed, or fails.
        """
        python = prepare("autoround", self.environments)
        job, out, tokens = (self.work / f"autoround-{bits}.{end}" for end in ("json", "safetensors", "npy"))
        np.save(tokens, self.fit.numpy())
        asked = {
            "model": str(self.loaded.folder.resolve()),
            "tokens": str(tokens),
            "bits": bits,
            "block": BLOCK,
            "steps": recipe.steps,
            "batch": 8,
            "best": recipe.extended,
            "out": str(out),
        }
        job.write_text(json.dumps(asked), encoding="utf-8")
        single = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        command = [str(python), str(ROOT / "reports" / "rounding" / "autoround.py"), str(job)]
        done = subprocess.run(
            command, check=False, env=os.environ | single, capture_output=True, text=True, timeout=TIMEOUT_S
        )
        if done.returncode:
            msg = "AutoRound failed"
            tail = "\n".join((done.stdout + done.stderr).splitlines()[-12:])
            raise ToolError(msg, command=" ".join(command), code=done.returncode, tail=tail)
        return load_file(out), float(json.loads(done.stdout.splitlines()[-1])["s"])


def load_texts(loaded: LoadedModel, data: Path, work: Path, fit_tokens: int) -> dict[str, Texts]:
    """Every kind of text, with so many tokens to fit to, or all that there are."""
    documentation = work / "documentation.txt"
    documentation.write_text("\n\n".join(topics[name] for name in sorted(topics)), encoding="utf-8")
    windows = windows_of(loaded)
    found = {}
    for kind, sources in {
        "prose": (str(data / "valid.txt"), str(data / "test.txt")),
        "code": ("python-stdlib",),
        "documentation": (str(documentation),),
    }.items():
        samples = max(TEST_ROWS, 2 * JUDGE_ROWS)  # the held-out ones are as many
        cut = windows(load_text(sources[0]), samples=samples, fit_tokens=fit_tokens)
        test = cut.tokens[:TEST_ROWS] if len(sources) == 1 else windows(load_text(sources[1]), samples=TEST_ROWS).tokens
        judge, held_out = np.split(cut.heldout[: 2 * JUDGE_ROWS], 2)
        found[kind] = Texts(*(torch.from_numpy(part.copy()) for part in (cut.fit, judge, held_out, test)))
    return found


def mixed(parts: list[Tensor], rows: int) -> Tensor:
    """Rows of all parts in turn, as many as asked for."""
    turns = [part[row] for row in range(rows) for part in parts if row < len(part)]
    return torch.stack(turns[:rows])


def main() -> None:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shared", type=Path, required=True)
    parser.add_argument("--model", default="qwen2-8m", help="a folder of FOLDER/models")
    parser.add_argument("--fit", choices=("mixture", *KINDS), default="mixture", help="what is fitted to")
    parser.add_argument("--fit-tokens", type=int, default=FIT_TOKENS)
    parser.add_argument("--widths", type=int, nargs="+", default=WIDTHS)
    parser.add_argument("--best", action="store_true", help="also AutoRound's best recipe: five times as long")
    parser.add_argument("--no-peers", action="store_true", help="qplan's own alone")
    parser.add_argument("--environments", type=Path, default=Path.home() / ".cache" / "qplan-peers")
    given = parser.parse_args()
    torch.set_num_threads(1)
    recipes = () if given.no_peers else RECIPES if given.best else RECIPES[:1]
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        loaded = load_model(str(given.shared / "models" / given.model))
        texts = load_texts(loaded, given.shared / "data" / "wikitext2", work, given.fit_tokens)
        fitted = list(texts.values()) if given.fit == "mixture" else [texts[given.fit]]
        comparison = Comparison(
            loaded,
            mixed([kind.fit for kind in fitted], given.fit_tokens // SEQ_LEN),
            mixed([kind.judge for kind in fitted], JUDGE_ROWS),
            mixed([kind.held_out for kind in fitted], JUDGE_ROWS),
            {name: kind.test for name, kind in texts.items()},
            work,
            given.environments,
        )
        for bits in given.widths:
            for row in comparison.rows(bits, recipes):
                said = {"fitted_to": given.fit, "tokens": comparison.fit.numel(), "bits": bits}
                print(json.dumps(said | row), flush=True)  # noqa: T201 - its output


if __name__ == "__main__":
    main()
