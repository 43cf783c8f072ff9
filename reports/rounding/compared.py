"""Roundings of qplan and of its peers on the same calibration tokens: loss by width on three kinds of text.

Run from the repository's root with

    python -m reports.rounding.compared --shared FOLDER                # FOLDER/models/qwen2-8m, FOLDER/data/wikitext2
    python -m reports.rounding.compared --shared FOLDER --model embedded
    python -m reports.rounding.compared --shared FOLDER --fit prose    # fitted to prose alone

All linears of the decoder at one width, asymmetric blocks of 64, the head in fp16, memory normal, on MNN's engine.
Kinds of text are *prose* (WikiText-2), *code* (``calib/python-stdlib``) and *documentation* (what Python's ``help``
says of the language); the mixture has a third of each. Losses are those on 6,144 tokens of each kind to which nothing
was fitted. AutoRound and llm-compressor are installed into environments of their own (about 2 GB each) and quantize in
FP32 on one thread: GPTQ, 200 steps of 8 rows, which is AutoRound's default, and with ``--best`` 1,000 steps of its
extended algorithm too. Adds each row to
``compared.json`` and writes ``compared.md`` beside this file; what is in ``--work`` is not computed again.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

import qplan.demo
from qplan.calibration import load_text
from qplan.errors import ToolError
from qplan.formats import QuantFormat
from qplan.mnn.build.exporter import export_skeleton
from qplan.mnn.build.skeleton import Skeleton
from qplan.mnn.build.writer import build_model
from qplan.mnn.engine.session import EngineSession
from qplan.mnn.runtime import RuntimeConfig
from qplan.model.load import LoadedModel, load_model
from qplan.rounding import Int8Activations, IntTensor
from qplan.rounding.codes import codes_of, extreme_levels
from qplan.rounding.grid import storable
from qplan.rounding.moments import gather_moments
from qplan.rounding.rounder import Rounder
from qplan.rounding.stored_cache import FittedTensors, StoredCache
from qplan.sensitivity.joint import Variant
from qplan.sensitivity.kept_logits import KeptLogits, kept_logits
from qplan.tuning.kept import IN_ORDER
from qplan.tuning.scales import ScaleFit
from qplan.tuning.schedule import STEPS_OF_FULL, Schedule, epochs_of_full
from qplan.tuning.sequential import SequentialFit
from reports.peers.environment import prepare
from reports.rounding.subject import BLOCK, JUDGE_ROWS, SEQ_LEN, decoder_formats, windows_of

HOME = Path(__file__).parent
Row = dict[str, Any]
FIT_TOKENS, TEST_ROWS = 32768, 24
WIDTHS = (4, 3, 2, 8)
KINDS = ("prose", "code", "documentation")
TIMEOUT_S = 4 * 3600
_OFF_GRID = 0.01
"""Steps by which another tool's weights may differ from what MNN's fp16 scales and zeros make of its integers."""


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
    """How a peer is run."""

    name: str
    script: str
    """Module beside this file; jobs have its name too."""
    peer: str
    """Whose environment it runs in."""
    asked: Mapping[str, int]
    """What its job holds beside model, tokens and width."""


GPTQ = Recipe("GPTQ, llm-compressor", "llm_compressor", "llm-compressor", {})
DEFAULT = Recipe("AutoRound, default", "autoround", "autoround", {"steps": 200, "batch": 8, "best": False})
BEST = Recipe("AutoRound, best", "autoround", "autoround", {"steps": 1000, "batch": 8, "best": True})


@dataclass(frozen=True)
class Made:
    """Integers of a model, and what they took."""

    rounder: Rounder
    seconds: float | None = None
    """Of the processor; None where it was not measured."""
    passes: float | None = None


@dataclass(frozen=True)
class Comparison:
    """A model, what roundings are fitted to, and what they are tested on."""

    loaded: LoadedModel
    skeleton: Skeleton
    fit: Tensor
    judge: Tensor
    held_out: Tensor
    tests: Mapping[str, KeptLogits]
    """FP32's logits by kind of text."""
    work: Path
    environments: Path

    def roundings(self, bits: int, recipes: tuple[Recipe, ...]) -> Iterator[tuple[str, Callable[[], Made]]]:
        """Every rounding at one width, in an order in which each has what it begins with."""
        formats = decoder_formats(self.loaded, bits)
        yield "rtn", lambda: Made(Rounder(self.loaded))
        cache = StoredCache(self.work / f"hqq-{bits}", {"rounding": "llmexport-hqq"})
        yield "llmexport --hqq", lambda: Made(Rounder(self.loaded, "llmexport-hqq", cache=cache))
        yield "qplan, auto", lambda: Made(self.auto(bits))
        yield "qplan, in order", lambda: self.in_order(bits, formats, trains=False)
        yield "qplan, in order, layers trained", lambda: self.in_order(bits, formats, trains=True)
        yield "qplan, then all scales trained", lambda: self.end_to_end(bits, formats)
        for recipe in recipes:
            yield recipe.name, partial(self.by_peer, bits, recipe)

    def auto(self, bits: int) -> Rounder:
        """Each tensor by itself."""
        fit, judge = (
            gather_moments(self.loaded, tokens, self.work / name, inputs={"rows": str(len(tokens))})
            for name, tokens in (("fit", self.fit), ("judge", self.judge))
        )
        return Rounder(self.loaded, "auto", fit, judge, StoredCache(self.work / f"auto-{bits}", {"rounding": "auto"}))

    def in_order(self, bits: int, formats: Mapping[str, QuantFormat], *, trains: bool) -> Made:
        """Layer after layer."""
        auto, kept = self.auto(bits), StoredCache(self.work / f"ordered-{bits}-{trains}", IN_ORDER)
        plan = Variant(formats, "normal", Int8Activations())
        ordered = SequentialFit(auto, plan, self.fit, kept, trains=trains)
        start = time.process_time()
        ordered.run()
        fitted = replace(auto, fitted=FittedTensors(ordered.cache, ordered.formats))
        return Made(fitted, time.process_time() - start)

    def end_to_end(self, bits: int, formats: Mapping[str, QuantFormat]) -> Made:
        """Scales and zeros of what `in_order` made of all layers."""
        rounder = self.in_order(bits, formats, trains=True).rounder
        epochs = epochs_of_full(self.fit.numel())
        schedule = Schedule.of(len(self.fit), len(self.held_out), SEQ_LEN, most=STEPS_OF_FULL, epochs=epochs)
        kept = StoredCache(self.work / f"trained-{bits}", IN_ORDER | {"rounding": "trained"})
        plan = Variant(formats, "normal", Int8Activations())
        trained = ScaleFit(rounder, plan, torch.cat([self.fit, self.held_out]), kept, schedule)
        start = time.process_time()
        trained.run()
        fitted = replace(rounder, fitted=FittedTensors(kept, trained.formats))
        return Made(fitted, time.process_time() - start, schedule.tokens.passes(self.fit.numel()))

    def losses(self, rounder: Rounder, bits: int) -> dict[str, float]:
        """KL in nats per token by kind of text."""
        card, runtime = self.loaded.card, RuntimeConfig("normal")
        built = self.work / "built"
        build_model(
            self.skeleton,
            card.tensors,
            decoder_formats(self.loaded, bits),
            rounder.store,
            built,
            runtime=runtime,
            replace=True,
        )
        with EngineSession(built, runtime, context=card.context) as engine:
            return {kind: reference.compare(engine.logits).kl_nats for kind, reference in self.tests.items()}

    def by_peer(self, bits: int, recipe: Recipe) -> Made:
        """What a peer makes of the same tokens.

        Raises:
            ToolError: it cannot be installed, or fails.
        """
        python = prepare(recipe.peer, self.environments)
        name = "-".join([recipe.script, str(bits), *map(str, recipe.asked.values())])
        job, out, tokens = (self.work / f"{name}.{end}" for end in ("json", "safetensors", "npy"))
        np.save(tokens, self.fit.numpy())
        asked = {
            "model": str(self.loaded.folder.resolve()),
            "tokens": str(tokens.resolve()),
            "bits": bits,
            "block": BLOCK,
            "out": str(out.resolve()),
            **recipe.asked,
        }
        job.write_text(json.dumps(asked), encoding="utf-8")
        single = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        command = [str(python), "-m", f"reports.rounding.{recipe.script}", str(job.resolve())]
        done = subprocess.run(
            command,
            check=False,
            cwd=HOME.parents[1],
            env=os.environ | single,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
        )
        if done.returncode:
            msg = f"{recipe.name} failed"
            tail = "\n".join((done.stdout + done.stderr).splitlines()[-12:])
            raise ToolError(msg, command=" ".join(command), code=done.returncode, tail=tail)
        made, fmt = load_file(out), QuantFormat(bits, BLOCK)
        held = {
            spec.name: integers_of(fmt, *(made[f"{part}{spec.name}"] for part in ("", "scale:", "zero:")))
            for spec in self.loaded.card.tensors
            if spec.layer is not None
        }
        none = StoredCache(self.work / "none", {})
        fitted = FittedTensors(none, dict.fromkeys(held, fmt), held)
        return Made(Rounder(self.loaded, fitted=fitted), float(json.loads(done.stdout.splitlines()[-1])["s"]))


def integers_of(fmt: QuantFormat, weight: Tensor, scale: Tensor, zero: Tensor) -> IntTensor:
    """Another tool's weights in MNN's format.

    Raises:
        ToolError: they do not lie on its grid.
    """
    low, _ = extreme_levels(fmt)
    blocks = weight.view(*scale.shape, -1)
    steps = blocks / scale[..., None] + zero[..., None]
    levels = steps.round().clamp_(0, 2**fmt.bits - 1) + low
    codes = codes_of(levels, fmt).view(weight.shape)
    grid = storable(fmt, scale, -(zero + low) * scale)
    found = IntTensor(fmt, codes, grid.scale, grid.zero)
    off = float((found.dequantize() - weight).abs().max() / scale.max())
    if off > _OFF_GRID:
        msg = f"weights are up to {off:.2g} steps away from their grid"
        raise ToolError(msg)
    return found


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


def page(rows: list[Row]) -> str:
    """The report."""
    lines = [
        "# The same calibration text for all",
        "",
        (
            "Written by `python -m reports.rounding.compared`, from `compared.json`. All linears of the decoder "
            "at one width, asymmetric blocks of 64, the head in fp16; KL divergences from FP32 in nats per token "
            f"on MNN's engine, memory normal, on {TEST_ROWS * SEQ_LEN:,} tokens of each kind of text, to which "
            "nothing was fitted. In brackets the ratio to the better one of AutoRound's recipes. Seconds are the "
            "processor's, of this step alone, on a machine that others used too."
        ),
    ]
    heads = dict.fromkeys((row["model"], row["fitted_to"], row["tokens"]) for row in rows)
    for model, fitted_to, tokens in heads:
        lines += ["", f"## {model}, {tokens:,} tokens of {fitted_to}", ""]
        lines += [f"| bits | rounding | {' | '.join(KINDS)} | s |", f"|---|---|{'---:|' * (len(KINDS) + 1)}"]
        own = [row for row in rows if (row["model"], row["fitted_to"], row["tokens"]) == (model, fitted_to, tokens)]
        for bits in dict.fromkeys(row["bits"] for row in own):
            together = [row for row in own if row["bits"] == bits]
            theirs = [row for row in together if row["rounding"].startswith("AutoRound")]
            for row in together:
                cells = []
                for kind in KINDS:
                    best = min((other[kind] for other in theirs), default=None)
                    ratio = "" if best is None else f" ({row[kind] / best:.2f})"
                    cells.append(f"{row[kind]:.3e}{ratio}")
                took = "" if row["s"] is None else f"{row['s']:.0f}"
                lines.append(f"| {bits} | {row['rounding']} | {' | '.join(cells)} | {took} |")
    return "\n".join(lines) + "\n"


def keep(row: Row) -> None:
    """Add a row to what the report says, in place of an earlier one of the same."""
    path, said = HOME / "compared.json", ("model", "fitted_to", "tokens", "bits", "rounding")
    rows: list[Row] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
    rows = [known for known in rows if any(known[key] != row[key] for key in said)] + [row]
    rows.sort(key=lambda known: (known["model"], known["fitted_to"], known["tokens"], -known["bits"]))
    path.write_text("[\n" + ",\n".join(json.dumps(known) for known in rows) + "\n]\n", encoding="utf-8")
    (HOME / "compared.md").write_text(page(rows), encoding="utf-8")


def main() -> None:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shared", type=Path, required=True)
    parser.add_argument("--model", default="qwen2-8m", help="a folder of FOLDER/models, or embedded")
    parser.add_argument("--fit", choices=("mixture", *KINDS), default="mixture", help="what is fitted to")
    parser.add_argument("--fit-tokens", type=int, default=FIT_TOKENS)
    parser.add_argument("--widths", type=int, nargs="+", default=WIDTHS)
    parser.add_argument("--best", action="store_true", help="also AutoRound's best recipe: five times as long")
    parser.add_argument("--no-peers", action="store_true", help="qplan's own alone")
    parser.add_argument("--environments", type=Path, default=Path.home() / ".cache" / "qplan-peers")
    parser.add_argument("--work", type=Path, help="folder for what is made, to go on from")
    given = parser.parse_args()
    torch.set_num_threads(1)
    recipes = () if given.no_peers else (GPTQ, DEFAULT, BEST) if given.best else (GPTQ, DEFAULT)
    embedded = Path(qplan.demo.__file__).parent / "stdlib-3m"
    with ExitStack() as stack:
        parent = given.work or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        work = parent / f"{given.model}-{given.fit}-{given.fit_tokens}"
        work.mkdir(parents=True, exist_ok=True)
        loaded = load_model(str(embedded if given.model == "embedded" else given.shared / "models" / given.model))
        graph = work / "skeleton"
        skeleton = Skeleton.open(graph) if graph.is_dir() else export_skeleton(loaded.folder, graph)
        texts = load_texts(loaded, given.shared / "data" / "wikitext2", work, given.fit_tokens)
        fitted = list(texts.values()) if given.fit == "mixture" else [texts[given.fit]]
        comparison = Comparison(
            loaded,
            skeleton,
            mixed([kind.fit for kind in fitted], given.fit_tokens // SEQ_LEN),
            mixed([kind.judge for kind in fitted], JUDGE_ROWS),
            mixed([kind.held_out for kind in fitted], JUDGE_ROWS),
            {name: stack.enter_context(kept_logits(loaded, kind.test.numpy())) for name, kind in texts.items()},
            work,
            given.environments,
        )
        kept = work / "rows.jsonl"
        rows = [json.loads(line) for line in kept.read_text(encoding="utf-8").splitlines()] if kept.exists() else []
        done = {(row["bits"], row["rounding"]) for row in rows}
        for bits in given.widths:
            for name, make in comparison.roundings(bits, recipes):
                if (bits, name) not in done:
                    made = make()
                    told = {"model": given.model, "fitted_to": given.fit, "tokens": comparison.fit.numel()}
                    spent = {"bits": bits, "rounding": name, "s": made.seconds, "passes": made.passes}
                    row = told | spent | comparison.losses(made.rounder, bits)
                    keep(row)
                    print(json.dumps(row), flush=True)
                    with kept.open("a", encoding="utf-8") as file:
                        file.write(f"{json.dumps(row)}\n")


if __name__ == "__main__":
    main()
