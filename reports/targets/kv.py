"""What each way to store the KV cache loses on a long sequence, and its RAM as predicted and as allocated.

    python -m reports.targets.kv MODEL_FOLDER --text FILE

Weights are in fp16, so that nothing else is rounded. With ``--run``, an analysis of the model, plans are made beside
each cache under ``--max-ram``; the pair that loses least is built and proved. Prints a page in Markdown.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import qplan.demo
from qplan.artifact import versions
from qplan.choosing.cache import CacheMenu, choose_cache
from qplan.choosing.request import PlanRequest
from qplan.choosing.sizes import fixed_bytes
from qplan.cost.kv_cache import KvMode, KvShape, kv_target
from qplan.errors import InfeasibleError, MeasurementError
from qplan.folding.analyzed import load_analyzed
from qplan.mnn.build.exporter import export_skeleton
from qplan.mnn.build.skeleton import Skeleton
from qplan.mnn.build.writer import build_model, set_runtime
from qplan.mnn.engine.session import EngineSession
from qplan.mnn.runtime import RuntimeConfig
from qplan.model.attention_shape import kv_shape
from qplan.model.load import LoadedModel, load_model
from qplan.planner.budget import parse_budgets
from qplan.planner.planning import make_plan
from qplan.planner.size import Size
from qplan.rounding.rounder import Rounder
from qplan.run.folder import RunFolder
from qplan.run.kv_cache import KvLoss
from qplan.run.plan import Plan
from qplan.run.table import SensitivityTable
from qplan.sensitivity.kept_logits import kept_logits
from qplan.uniform import uniform_formats
from qplan.verify.cache import STEPS, CacheTrial, cache_trial, prove_cache
from reports.targets.console import tell

HOME = Path(qplan.demo.__file__).parent
HEAD = (
    "| cache | attention_mode | prompt, nats | its last eighth | answer, nats | MB predicted | MB allocated |",
    "|---|---:|---:|---:|---:|---:|---:|",
)
SHORT, SECOND = 64, 128
"""Tokens of a short first prompt, and of all with what follows it: one by one, or as a second prompt."""


def main() -> None:
    """Measure a model and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?", default=str(HOME / "stdlib-3m"))
    parser.add_argument("--text", type=Path, default=HOME / "heldout.txt")
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--work", type=Path, default=Path("build/kv"), help="keeps the built model and the results")
    parser.add_argument("--modes", default=",".join(KvMode))
    parser.add_argument("--run", type=Path, help="an analysis of the model")
    parser.add_argument("--max-ram", default="150MB")
    options = parser.parse_args()
    loaded = load_model(options.model)
    folder = built(loaded, options.work)
    ids = loaded.tokenizer(options.text.read_text(encoding="utf-8")[: 20 * options.tokens])["input_ids"]
    row = np.array(ids[: options.tokens], dtype=np.int64).reshape(1, -1)
    shape, kept = kv_shape(loaded.config), options.work / "kv.json"
    found: dict[str, Any] = json.loads(kept.read_text(encoding="utf-8")) if kept.is_file() else {}
    modes = [KvMode(name) for name in options.modes.split(",")]
    with kept_logits(loaded, row) as reference:
        trial = CacheTrial(reference, loaded.card.context)
        for mode in modes:
            if mode.value not in found:
                found[mode.value] = measured(trial, folder, mode)
                kept.write_text(json.dumps(found, indent=1), encoding="utf-8")
    for mode in (KvMode.FLOAT, KvMode.K8, KvMode.KV8):
        if f"{mode}-short" not in found:
            found[f"{mode}-short"] = short_prompts(folder, mode, row[0, :SECOND].tolist(), loaded.card.context)
            kept.write_text(json.dumps(found, indent=1), encoding="utf-8")
    name = Path(options.model).name
    lines = [*about(name, options.text.name, row.size, shape), *table(found, modes, shape), *second(found)]
    if options.run is not None:
        limited = UnderLimit(RunFolder(options.run), Size.parse(options.max_ram, "--max-ram"), row, found)
        lines += limited.lines(options.work / "plan")
    print("\n".join(lines))


def built(loaded: LoadedModel, work: Path) -> Path:
    """The model in fp16."""
    skeleton, folder = work / "skeleton", work / "fp16"
    if not folder.is_dir():
        graph = Skeleton.open(skeleton) if skeleton.is_dir() else export_skeleton(loaded.folder, skeleton)
        formats = uniform_formats(loaded.card, 16)
        build_model(graph, loaded.card.tensors, formats, Rounder(loaded).store, folder, context=loaded.card.context)
    return folder


def measured(trial: CacheTrial, folder: Path, mode: KvMode) -> dict[str, Any]:
    """Losses of a mode, and bytes of its buffers after the prompt."""
    losses, allocated = trial.run(folder, RuntimeConfig("normal", kv=mode))
    last = losses[trial.prompt * 7 // 8 : trial.prompt]
    found = asdict(trial.of(losses)) | {"last_nats": float(last.mean()), "bytes": allocated}
    tell(mode.value, found)
    return found


def short_prompts(folder: Path, mode: KvMode, ids: list[int], context: int) -> dict[str, float]:
    """KL from the engine with floats, of what follows a short prompt one by one, and as a second prompt."""
    set_runtime(folder, RuntimeConfig("normal", kv=KvMode.FLOAT))
    with EngineSession(folder, RuntimeConfig("normal", kv=KvMode.FLOAT), context=context) as engine:
        expected = torch.from_numpy(engine.logits(ids)).double().log_softmax(-1)[SHORT:]
    set_runtime(folder, RuntimeConfig("normal", kv=mode))
    found = {}
    with EngineSession(folder, RuntimeConfig("normal", kv=mode), context=context) as engine:
        for name, parts in (("answer", (SHORT, *[1] * SHORT)), ("second", (SHORT, SECOND - SHORT))):
            logits = torch.from_numpy(engine.logits_in_parts(ids, parts)).double().log_softmax(-1)[SHORT:]
            found[name] = float((expected.exp() * (expected - logits)).sum(-1).mean())
    tell(mode.value, found)
    return found


def about(name: str, text: str, tokens: int, shape: KvShape) -> list[str]:
    """What was measured."""
    measured = (
        f"KL to FP32 in nats per token on {tokens:,} tokens of {text}: a prompt in one pass, and the last 64 tokens "
        f"one by one, as an answer is made. Weights in fp16, MNN {versions()['MNN']}, x86. {shape.layers} layers of "
        f"{shape.heads} heads of {shape.head_dim}."
    )
    allocated = (
        "MB allocated are the sizes of the files that the engine maps its cache to with `kvcache_mmap`, after the "
        "prompt: keys and values with their scales, to the byte as predicted, or the script fails. The sums that int8 "
        "keeps beside them are counted in plans."
    )
    return [f"# The KV cache of {name}", "", measured, "", allocated, ""]


def table(found: dict[str, Any], modes: list[KvMode], shape: KvShape) -> Iterator[str]:
    """A line for every mode.

    Raises:
        MeasurementError: the engine allocated other bytes than were predicted.
    """
    yield from HEAD
    for mode in modes:
        result = found[mode.value]
        predicted = kv_target("cpu-x86", "low").bytes(mode, shape, result["prompt_tokens"]).stored
        if predicted != result["bytes"]:
            msg = f"{mode}: {predicted:,} bytes were predicted, the engine allocated {result['bytes']:,}"
            raise MeasurementError(msg)
        losses = (result["prefill_nats"], result["last_nats"], result["decode_nats"])
        cells = [mode.value, str(mode.attention_mode), *(f"{nats:.2e}" for nats in losses)]
        cells += [f"{count / 1e6:.3f}" for count in (predicted, result["bytes"])]
        yield f"| {' | '.join(cells)} |"


def second(found: dict[str, Any]) -> list[str]:
    """What int8 loses after a short prompt."""
    measured = (
        f"KL to the same model with a cache of floats, on the {SECOND - SHORT} tokens that follow. A second prompt "
        "into the same cache (`reuse_kv`, `chunk`) changes the largest keys that int8 keys are stored relative to, and "
        "those stored before are not corrected."
    )
    lines = ["", f"## After a first prompt of {SHORT} tokens", "", measured, ""]
    lines += ["| cache | one by one, nats | as a second prompt, nats |", "|---|---:|---:|"]
    for mode in (KvMode.FLOAT, KvMode.K8, KvMode.KV8):
        result = found[f"{mode}-short"]
        lines.append(f"| {mode.value} | {result['answer']:.2e} | {result['second']:.2e} |")
    return lines


@dataclass(frozen=True)
class UnderLimit:
    """Plans beside caches under a RAM limit."""

    run: RunFolder
    limit: Size
    row: NDArray[np.int64]
    found: dict[str, Any]
    """Losses of caches."""

    @cached_property
    def table(self) -> SensitivityTable:
        """Losses of weights."""
        return SensitivityTable.read(self.run.sensitivity)

    @cached_property
    def skeleton(self) -> Skeleton:
        """The graph."""
        return Skeleton.open(self.run.skeleton_for(c4=True, unfolded=False)[0])

    def plan(self, request: PlanRequest) -> Plan:
        """The best plan beside a cache."""
        limits = request.limits(self.table, self.run)
        return make_plan(
            self.table,
            request.budgets,
            fixed_bytes(self.skeleton, self.table.model),
            rules=request.rules,
            ceilings=limits,
        )

    def loss(self, mode: KvMode) -> KvLoss:
        """What a cache loses, as measured above."""
        result = self.found[mode.value]
        return KvLoss(**{field.name: result[field.name] for field in fields(KvLoss)})

    def lines(self, folder: Path) -> list[str]:
        """All pairs, and the proof of the best.

        Raises:
            MeasurementError: the engine broke a promise.
        """
        loaded = load_analyzed(self.run, self.table.model, tell).loaded
        shape = kv_shape(loaded.config)
        menu = CacheMenu(shape, kv_target("cpu-x86", "low"), "cpu-x86", self.row.size)
        request = PlanRequest(budgets=parse_budgets(["int4"]), max_ram=self.limit, context=self.row.size)
        told = []
        for mode in menu.modes:
            cache = menu.cache(mode, None if mode is KvMode.FLOAT else self.loss(mode))
            try:
                nats = self.plan(replace(request, cache=cache)).predicted_nats
                losses = f"{nats:.3e} | {cache.nats:.3e} | {nats + cache.nats:.3e}"
            except InfeasibleError:
                losses = "does not fit | |"
            told.append(f"| {mode} | {cache.bytes / 1e6:.1f} | {losses} |")
        cache = choose_cache(menu, request, lambda asked: self.plan(asked).predicted_nats, self.loss, tell)
        plan = replace(self.plan(replace(request, cache=cache)), kv=cache)
        tensors, store = loaded.card.tensors, Rounder(loaded).store
        build_model(
            self.skeleton, tensors, plan.formats, store, folder, context=loaded.card.context, replace=folder.is_dir()
        )
        with cache_trial(loaded, self.row, self.row.size) as trial:
            _, checks = prove_cache(plan, folder, trial, shape)
        if not all(check.passed for check in checks):
            msg = "; ".join(f"{check.name}: {check.detail}" for check in checks)
            raise MeasurementError(msg)
        limit = plan.limits[0]
        return [
            *("", f"## int4 within {self.limit.text} of RAM and {self.row.size:,} tokens", ""),
            *(
                "| cache | MB | plan beside it, nats predicted | cache, nats | sum |",
                "|---|---:|---:|---:|---:|",
                *told,
            ),
            *("", f"Chosen: {cache.mode}. RAM of weights and cache: {limit.predicted:.2f} of {limit.limit:.2f} MB."),
            f"Its plan, rounded to nearest, on the engine with {trial.prompt} tokens and {STEPS} more: ",
            *(f"{check.name}: {check.detail}. " for check in checks),
        ]


if __name__ == "__main__":
    main()
