"""Runs built folders on the engine and records what they do."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from qplan.formats import QuantFormat, applies
from qplan.mnn.build.skeleton import folder_bytes
from qplan.mnn.engine.session import EngineSession
from qplan.mnn.runtime import RuntimeConfig
from qplan.rounding import Int8Activations
from qplan.rounding.rounder import Rounder
from qplan.run.verification import BuiltModel, EngineRun, Speed
from qplan.sensitivity.joint import Variant, variant_losses
from qplan.sensitivity.kept_logits import KeptLogits
from qplan.sensitivity.metrics import TokenStats
from qplan.sensitivity.paired import mean_stderr
from qplan.settings import MEMORIES, DynamicOption, Memory, Precision, Say
from qplan.verify.reference import accuracy_of

LEAST_REPEATS = 2
"""Of timing prefill and decode of a model by itself."""

FLOAT_STEPS = 32
"""Tokens of a sequence that a model without integers is run on token by token: no rounding of activations depends on
how many there are, so this need only show it, and reading floats for each token takes an engine longest."""

Keep = Callable[[Memory, TokenStats], None]


@dataclass(frozen=True)
class Trial:
    """What every built model is measured on."""

    reference: KeptLogits
    threads: int = 1
    decode_rows: int = 2
    """Rows that are also run token by token, under memory low."""
    prompt_tokens: int = 128
    decode_tokens: int = 32
    repeats: int = 5
    """Of timing prefill and decode, at most."""
    enough_s: float = 4.0
    """Seconds of timing after which no further repeat is begun: a large model's prefill and tokens take long enough to
    be timed well by few."""

    def timed_tokens(self, context: int) -> tuple[int, int]:
        """Tokens of the prompt and tokens decoded after it where speeds are measured, within a model's context."""
        decode = max(1, min(self.decode_tokens, context // 4))
        return max(1, min(self.prompt_tokens, context - decode)), decode

    @property
    def settings(self) -> str:
        """Everything besides the tokens that changes results, as text."""
        counts = (self.threads, self.decode_rows, self.prompt_tokens, self.decode_tokens, self.repeats)
        return self.settings_of(self.reference.rows.shape, counts)

    @staticmethod
    def settings_of(shape: tuple[int, ...], counts: tuple[int, int, int, int, int]) -> str:
        """The same from the shape of the tokens, and the numbers in their order."""
        return f"{shape}, {counts}"


def measure_model(
    name: str,
    folder: Path,
    formats: Mapping[str, QuantFormat],
    *,
    rounder: Rounder,
    trial: Trial,
    say: Say,
    dynamic_option: DynamicOption = 0,
    precision: Precision = "low",
    beside: DynamicOption | None = None,
    speeds: Mapping[DynamicOption, Speed] | None = None,
    keep: Keep | None = None,
    memories: Sequence[Memory] = MEMORIES,
) -> BuiltModel:
    """Run a built folder under both memory settings, or some, and the same stored weights in torch.

    Args:
        name: ``plan``, or that of a uniform model.
        folder: the built folder.
        formats: formats that it was built with, by tensor name.
        rounder: chose the integers that it was built with.
        trial: tokens and repeats.
        say: called with a line about each step.
        dynamic_option: the option that the model ships with.
        precision: MNN's setting that it ships with.
        beside: the other option, measured under memory low for comparison; None to leave it out.
        speeds: by ``dynamic_option``, if they were measured already; a model by itself is timed otherwise.
        keep: called with the losses of single tokens, prefill, with the option that the model ships with.
        memories: the settings under which it can be run.

    Raises:
        ToolError: the engine failed.
        MeasurementError: logits that are not finite.
    """
    loaded = rounder.loaded
    beside = beside if "low" in memories else None
    integers = applies("low", formats)
    runs: list[EngineRun] = []
    emulated: dict[str, float] = {}
    scatter: dict[str, float] = {}
    in_torch = _emulated(rounder, formats, trial.reference, dynamic_option)
    timed = dict(speeds or {})
    settings: list[tuple[Memory, DynamicOption]] = [
        (memory, dynamic_option) for memory in (memories if integers else memories[:1])
    ]
    if beside is not None:
        settings.append(("low", beside))
    for memory, option in settings:
        say(f"{name}: memory {memory}" + (f", dynamic_option {option}" if memory == "low" and option else ""))
        runtime = RuntimeConfig(memory, precision, trial.threads, option)
        with EngineSession(folder, runtime, context=loaded.card.context) as engine:
            stats = trial.reference.compare(engine.logits)
            runs.append(EngineRun(memory, "prefill", accuracy_of(stats), option))
            if keep is not None and option == dynamic_option:
                keep(memory, stats)
            if memory == "low":
                steps = None if integers else FLOAT_STEPS
                stepwise = trial.reference.compare(engine.logits_stepwise, trial.decode_rows, steps)
                runs.append(EngineRun(memory, "decode", accuracy_of(stepwise), option))
                if option not in timed:
                    timed[option] = _speed(engine, trial, loaded.card.context, least=LEAST_REPEATS)
        if option == dynamic_option:
            emulated[memory] = in_torch[memory].kl_nats
            difference = (in_torch[memory].kl - stats.kl).reshape(trial.reference.rows.shape)
            scatter[memory] = mean_stderr(difference) or 0.0
    for memory in () if integers else memories[1:]:  # floats are computed alike under all settings
        runs.append(replace(runs[0], memory=memory))
        emulated[memory], scatter[memory] = in_torch[memory].kl_nats, scatter[memories[0]]
        if keep is not None:
            keep(memory, stats)
    return BuiltModel(
        name,
        folder_bytes(folder),
        tuple(runs),
        timed.get(dynamic_option),
        emulated,
        dynamic_option,
        None if beside is None else timed[beside],
        scatter,
    )


def _speed(engine: EngineSession, trial: Trial, context: int, *, least: int) -> Speed:
    prompt, decode = trial.timed_tokens(context)
    sample = engine.measure_speed(prompt, decode, trial.repeats, least=least, enough_s=trial.enough_s)
    return Speed(
        memory=engine.runtime.memory,
        threads=engine.runtime.threads,
        prompt_tokens=prompt,
        prefill_tokens_per_s=sample.prefill_tokens_per_s,
        decode_tokens_per_s=sample.decode_tokens_per_s,
        ram_bytes=engine.ram_bytes,
        dynamic_option=engine.runtime.dynamic_option,
    )


def _emulated(
    rounder: Rounder, formats: Mapping[str, QuantFormat], reference: KeptLogits, option: DynamicOption
) -> dict[str, TokenStats]:
    """Losses that torch computes for the same stored weights, prefill, by memory setting."""
    activations = Int8Activations("prefill", option)
    return variant_losses(
        rounder.loaded,
        torch.from_numpy(reference.rows),
        {memory: Variant(formats, memory, activations) for memory in MEMORIES},
        batch_size=1,
        engine_embedding=True,
        rounder=rounder,
        reference=reference,
    )
