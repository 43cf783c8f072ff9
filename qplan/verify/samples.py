"""Texts of the built model, of a uniform one and of the Hugging Face model: the same prompts, greedy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from qplan.formats import FP16
from qplan.mnn.engine.session import EngineSession
from qplan.mnn.runtime import RuntimeConfig
from qplan.model.load import LoadedModel
from qplan.run.plan import Plan
from qplan.run.samples import FP32, Sample, Samples
from qplan.uniform import COMPARED_INTEGERS, UNIFORM_BITS
from qplan.verify.bench import BuildBench
from qplan.verify.parity import uniform_of
from qplan.verify.uniform_builds import UniformBuilds

PROMPTS, SHOWN = 12, 3
"""How many beginnings are continued, and how many of them are shown."""

PROMPT_TOKENS, NEW_TOKENS = 32, 32

Tokens = list[int]


@dataclass(frozen=True)
class WritingEngine:
    """A model folder as it is run."""

    name: str
    folder: Path
    runtime: RuntimeConfig


def sample_texts(bench: BuildBench, plan: Plan, model: Path, builds: UniformBuilds) -> Samples | None:
    """Continue beginnings of held-out sequences; None where a model is too large to be run whole for it.

    Args:
        bench: the model, and held-out tokens.
        plan: what was built.
        model: its folder.
        builds: uniform models.

    Raises:
        ToolError: the engine failed.
    """
    name = _uniform_name(plan)
    formats = uniform_of(builds.bench, UNIFORM_BITS[name])
    fits = all(plan.memory in bench.settings(held) for held in (plan.formats, formats))
    if bench.loaded.streamed or not fits:
        return None
    bench.say(f"samples of text: FP32, {name}, plan")
    prompts = _prompts(bench.trial.reference.rows)
    new = max(1, min(NEW_TOKENS, bench.loaded.card.context - prompts.shape[1]))
    threads = bench.trial.threads
    engines = (
        WritingEngine(name, builds.folder(name, formats), RuntimeConfig(plan.memory, threads=threads)),
        WritingEngine("plan", model, RuntimeConfig.of(plan, threads)),
    )
    written = {FP32: torch_texts(bench.loaded, prompts, new)}
    written |= {one.name: engine_texts(one, prompts.tolist(), new, bench.loaded.card.context) for one in engines}
    return samples_of(bench.loaded.tokenizer, prompts, written, new)


def samples_of(
    tokenizer: Any,  # noqa: ANN401 - a Hugging Face tokenizer
    prompts: NDArray[np.int64],
    written: Mapping[str, Sequence[Tokens]],
    new_tokens: int,
) -> Samples:
    """Count the continuations that are those of FP32, and show those that are least so.

    Args:
        tokenizer: the model's.
        prompts: ``[prompts, tokens]``.
        written: continuations of each prompt by model, that of FP32 first.
        new_tokens: tokens that were asked for.
    """
    ended = {name: [until_end(tokens, tokenizer.eos_token_id) for tokens in texts] for name, texts in written.items()}
    reference = ended[FP32]
    others = [name for name in ended if name != FP32]
    kept = [sum(_in_common(reference[row], ended[name][row]) for name in others) for row in range(len(prompts))]
    shown = sorted(sorted(range(len(prompts)), key=lambda row: kept[row])[:SHOWN])
    return Samples(
        prompts=len(prompts),
        prompt_tokens=prompts.shape[1],
        new_tokens=new_tokens,
        same={name: sum(a == b for a, b in zip(reference, ended[name], strict=True)) for name in others},
        shown=tuple(
            Sample(
                tokenizer.decode(prompts[row].tolist()),
                {name: tokenizer.decode(texts[row]) for name, texts in ended.items()},
            )
            for row in shown
        ),
    )


def _uniform_name(plan: Plan) -> str:
    """The uniform export that the budget names, otherwise the integers nearest in bytes."""
    sizes = {point.name: point.total_bytes for point in plan.uniform}
    named = plan.budget.strip().lower()
    if named in UNIFORM_BITS and named != FP16.name:
        return named
    return min(COMPARED_INTEGERS, key=lambda name: abs(sizes.get(name, 0) - plan.files.total))


def _prompts(rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Beginnings ``[prompts, tokens]`` of rows that are spread evenly, at most half of each."""
    chosen = np.linspace(0, len(rows) - 1, min(PROMPTS, len(rows))).round().astype(int)
    beginnings: NDArray[np.int64] = rows[chosen, : min(PROMPT_TOKENS, max(1, rows.shape[1] // 2))]
    return beginnings


def torch_texts(loaded: LoadedModel, prompts: NDArray[np.int64], new: int) -> list[Tokens]:
    """What the Hugging Face model continues prompts ``[prompts, tokens]`` with, all at once: the likeliest tokens."""
    ids, cache = torch.from_numpy(prompts).to(loaded.device), None
    steps = []
    with torch.no_grad():
        for _ in range(new):
            output = loaded.model(input_ids=ids, past_key_values=cache, use_cache=True)
            ids, cache = output.logits[:, -1].argmax(-1, keepdim=True), output.past_key_values
            steps.append(ids)
    found: list[Tokens] = torch.cat(steps, dim=1).tolist()
    return found


def engine_texts(one: WritingEngine, prompts: Sequence[Tokens], new: int, context: int) -> list[Tokens]:
    """What the engine continues each prompt with: so many tokens, the likeliest ones."""
    with EngineSession(one.folder, one.runtime, context=context) as engine:
        return [_continued(engine, prompt, new) for prompt in prompts]


def _continued(engine: EngineSession, prompt: Tokens, new: int) -> Tokens:
    tokens = [engine.begin(prompt).token]
    while len(tokens) < new:
        tokens.append(engine.step(tokens[-1]).token)
    return tokens


def until_end(tokens: Tokens, end: int | None) -> Tokens:
    """The tokens up to the end of the text."""
    return tokens[: tokens.index(end)] if end in tokens else tokens


def _in_common(one: Tokens, other: Tokens) -> int:
    """How many tokens two texts begin with alike."""
    differs = (place for place, (a, b) in enumerate(zip(one, other, strict=False)) if a != b)
    return next(differs, min(len(one), len(other)))
