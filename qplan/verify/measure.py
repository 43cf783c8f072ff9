"""Runs built folders on the engine and records what they do."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from qplan.formats import QuantFormat
from qplan.mnn.engine import Engine
from qplan.mnn.runtime import RuntimeConfig
from qplan.mnn.skeleton import folder_bytes
from qplan.sensitivity.rounding import Rounder
from qplan.sensitivity.table import Memory
from qplan.sensitivity.variants import StoredWeights, apply_formats
from qplan.verify.record import BuiltModel, EngineRun, Speed
from qplan.verify.reference import Reference, accuracy_of, torch_logits

MEMORIES: tuple[Memory, ...] = ("normal", "low")

Say = Callable[[str], None]


@dataclass(frozen=True)
class Trial:
    """What every built model goes through."""

    reference: Reference
    threads: int = 1
    decode_rows: int = 2
    """Rows that are also run token by token, under memory low."""
    prompt_tokens: int = 128
    decode_tokens: int = 32
    repeats: int = 5

    @property
    def settings(self) -> str:
        """All that changes results, besides the tokens."""
        counts = (self.threads, self.decode_rows, self.prompt_tokens, self.decode_tokens, self.repeats)
        return f"{self.reference.rows.shape}, {counts}"


def measure_model(
    name: str, folder: Path, formats: Mapping[str, QuantFormat], *, rounder: Rounder, trial: Trial, say: Say
) -> BuiltModel:
    """Run a built folder under both memory settings, and the same stored weights in torch.

    Args:
        name: ``fp16``, ``int8``, ``int4`` or ``plan``.
        folder: the built folder.
        formats: what it was built with, by tensor name.
        rounder: what it was built with.
        trial: tokens and repeats.
        say: told what is being done.

    Raises:
        ToolError: the engine failed.
        MeasurementError: logits that are not finite.
    """
    loaded = rounder.loaded
    runs: list[EngineRun] = []
    emulated: dict[str, float] = {}
    speed = None
    for memory in MEMORIES:
        say(f"{name}: memory {memory}")
        with Engine(folder, RuntimeConfig(memory, threads=trial.threads), context=loaded.card.context) as engine:
            runs.append(EngineRun(memory, "prefill", accuracy_of(trial.reference.compare(engine.logits))))
            if memory == "low":
                stepwise = trial.reference.compare(engine.logits_stepwise, trial.decode_rows)
                runs.append(EngineRun(memory, "decode", accuracy_of(stepwise)))
                speed = _speed(engine, trial, loaded.card.context)
        emulated[memory] = _emulated(rounder, formats, memory, trial.reference)
    return BuiltModel(name, folder_bytes(folder), tuple(runs), speed, emulated)


def _speed(engine: Engine, trial: Trial, context: int) -> Speed:
    decode = max(1, min(trial.decode_tokens, context // 4))
    prompt = max(1, min(trial.prompt_tokens, context - decode))
    sample = engine.measure_speed(prompt, decode, trial.repeats)
    return Speed(
        memory=engine.runtime.memory,
        threads=engine.runtime.threads,
        prompt_tokens=prompt,
        prefill_tokens_per_s=sample.prefill_tokens_per_s,
        decode_tokens_per_s=sample.decode_tokens_per_s,
        ram_bytes=engine.ram_bytes,
    )


def _emulated(rounder: Rounder, formats: Mapping[str, QuantFormat], memory: Memory, reference: Reference) -> float:
    """Loss in nats that torch computes for the same stored weights, prefill."""
    loaded = rounder.loaded
    with apply_formats(loaded, formats, memory, stored=StoredWeights(loaded, rounder), engine_embedding=True):
        return reference.compare(lambda ids: torch_logits(loaded, ids)).kl_nats
