"""What a KV cache loses and takes, measured on the engine."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from qplan.cost.kv_cache import KvMode, KvShape, kv_target
from qplan.cost.target import DEFAULT_TARGET
from qplan.errors import MeasurementError
from qplan.mnn.build.writer import set_runtime
from qplan.mnn.engine.session import EngineSession
from qplan.mnn.runtime import RuntimeConfig
from qplan.model.load import LoadedModel
from qplan.notes import note
from qplan.run.kv_cache import KvLoss
from qplan.run.plan import Plan
from qplan.run.verification import CacheProof, Check
from qplan.scratch import Scratch
from qplan.sensitivity.kept_logits import KeptLogits, kept_logits
from qplan.sensitivity.paired import mean_stderr
from qplan.settings import Progress

LONG_TOKENS, LONG_BYTES = 1024, 640 << 20
"""Most tokens of the sequence that caches are measured on, and most bytes of its logits."""

STEPS = 64
"""Tokens of it that come one by one, after all others in one pass: answers are generated so."""

_MARGIN = 1.1
_STDERRS = 4.0
"""Beyond what two errors that add up as they like may reach."""

_X86 = frozenset({"x86_64", "AMD64"})


@dataclass(frozen=True)
class CacheTrial:
    """One long sequence, and what the model in FP32 says of it."""

    reference: KeptLogits
    context: int
    """Longest sequence that the model takes."""

    @property
    def tokens(self) -> list[int]:
        """The sequence."""
        found: list[int] = self.reference.rows[0].tolist()
        return found

    @property
    def prompt(self) -> int:
        """Tokens that come in one pass; the others follow one by one."""
        return max(2, len(self.tokens) - STEPS)

    @property
    def parts(self) -> tuple[int, ...]:
        """Tokens of each pass."""
        return (self.prompt, *[1] * (len(self.tokens) - self.prompt))

    def run(self, folder: Path, runtime: RuntimeConfig) -> tuple[torch.Tensor, int]:
        """Loss at every token of a folder that is set to ``runtime``, and bytes of keys and values after the prompt.

        The engine maps each buffer to a file of its size; it makes room for `STEPS` tokens more than the prompt has.

        Raises:
            MeasurementError: logits that are not finite.
            ToolError: the engine failed.
        """
        set_runtime(folder, runtime)
        with Scratch("kv-cache") as work:
            mapped = replace(runtime, cache_folder=work)
            with EngineSession(folder, mapped, context=self.context) as engine:
                losses = self.reference.compare(lambda ids: engine.logits_in_parts(ids, self.parts)).kl
                return losses, sum(path.stat().st_size for path in work.glob("*.[kv]"))

    def of(self, losses: torch.Tensor) -> KvLoss:
        """Means over the prompt and over what follows."""
        prefill, decode = losses[: self.prompt], losses[self.prompt :]
        return KvLoss(
            prefill_nats=float(prefill.mean()),
            decode_nats=float(decode.mean()),
            prompt_tokens=len(prefill),
            decode_tokens=len(decode),
        )


def trial_tokens(rows: NDArray[np.int64], tokens: int, vocabulary: int) -> NDArray[np.int64]:
    """The sequence to measure on, ``[1, seq_len]``: rows one after the other, up to ``tokens``."""
    return rows.reshape(1, -1)[:, : most_tokens(tokens, vocabulary)]


def most_tokens(tokens: int, vocabulary: int) -> int:
    """How many of so many tokens a cache is measured on."""
    return min(tokens, LONG_TOKENS, LONG_BYTES // (4 * vocabulary))


@contextmanager
def cache_trial(
    loaded: LoadedModel, rows: NDArray[np.int64], tokens: int, progress: Progress | None = None
) -> Iterator[CacheTrial]:
    """The trial of a model; what it is compared with lives on disk until the block ends.

    Raises:
        MeasurementError: the text has too few tokens.
    """
    row = trial_tokens(rows, tokens, loaded.card.vocabulary)
    least = STEPS + 2
    if row.size < least:
        msg = (
            f"a KV cache is measured on {least} tokens or more, and there are {row.size}; give a larger --context and "
            "more --tokens"
        )
        raise MeasurementError(msg)
    with kept_logits(loaded, row, progress) as reference:
        yield CacheTrial(reference, loaded.card.context)


def prove_cache(plan: Plan, folder: Path, trial: CacheTrial, shape: KvShape) -> tuple[CacheProof, tuple[Check, ...]]:
    """Measure a built plan with its KV cache and with one of floats, and hold promises against the results.

    The folder ends up with the plan's cache.

    Raises:
        MeasurementError: logits that are not finite.
        ToolError: the engine failed.
    """
    if plan.kv is None:
        msg = "the plan has no KV cache"
        raise MeasurementError(msg)
    mode, kinds = plan.kv.mode, dict.fromkeys((KvMode.FLOAT, plan.kv.mode))
    found = {kind: trial.run(folder, RuntimeConfig.of(plan).with_cache(kind)) for kind in kinds}
    losses, floats = found[mode][0], found[KvMode.FLOAT][0]
    own, plain = trial.of(losses), trial.of(floats)
    predicted = kv_target(DEFAULT_TARGET, "low").bytes(mode, shape, trial.prompt).stored
    measured = found[mode][1] if platform.machine() in _X86 else None
    proof = CacheProof(
        mode=mode,
        loss=own,
        float_loss=plain,
        tokens=trial.prompt,
        predicted_bytes=predicted,
        measured_bytes=measured,
    )
    checks = []
    if mode is not KvMode.FLOAT and plan.kv.loss is not None:
        stderr = mean_stderr((losses - floats).view(1, -1)) or 0.0
        limit = _MARGIN * (plain.nats**0.5 + plan.kv.nats**0.5) ** 2 + _STDERRS * stderr
        told = note("kv-nats", mode=mode.value, nats=own.nats, float_nats=plain.nats, limit=limit)
        checks.append(Check(note("kv-loss"), own.nats <= limit, told))
    if measured is not None:
        same = note("kv-bytes-of", measured_bytes=measured, predicted_bytes=predicted, tokens=trial.prompt)
        checks.append(Check(note("kv-bytes"), measured == predicted, same))
    return proof, tuple(checks)
