"""What a KV cache loses and takes, measured on the engine."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
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
from qplan.settings import Progress
from qplan.verify.measure import mean_stderr

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

    def run(self, folder: Path, runtime: RuntimeConfig) -> torch.Tensor:
        """Loss at every token of a folder that was set to ``runtime``.

        Raises:
            MeasurementError: logits that are not finite.
            ToolError: the engine failed.
        """
        with EngineSession(folder, runtime, context=self.context) as engine:
            return self.reference.compare(lambda ids: engine.logits_continued(ids, self.prompt)).kl

    def loss(self, folder: Path, runtime: RuntimeConfig) -> KvLoss:
        """What a folder loses under ``runtime``, whose KV cache it is set to."""
        set_runtime(folder, runtime)
        found = self.run(folder, runtime)
        return self.of(found)

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
    most = min(tokens, LONG_TOKENS, LONG_BYTES // (4 * vocabulary))
    return rows.reshape(1, -1)[:, :most]


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
    losses = {}
    for kind in kinds:
        runtime = cache_runtime(plan, kind)
        set_runtime(folder, runtime)
        losses[kind] = trial.run(folder, runtime)
    own, floats = trial.of(losses[mode]), trial.of(losses[KvMode.FLOAT])
    measured, predicted = _bytes(plan, folder, trial, shape)
    proof = CacheProof(
        mode=mode,
        loss=own,
        float_loss=floats,
        tokens=len(trial.tokens),
        predicted_bytes=predicted,
        measured_bytes=measured,
    )
    checks = []
    if mode is not KvMode.FLOAT and plan.kv.loss is not None:
        stderr = mean_stderr((losses[mode] - losses[KvMode.FLOAT]).view(1, -1))
        limit = _MARGIN * (floats.nats**0.5 + plan.kv.nats**0.5) ** 2 + _STDERRS * stderr
        found = note("kv-nats", mode=mode.value, nats=own.nats, float_nats=floats.nats, limit=limit)
        checks.append(Check(note("kv-loss"), own.nats <= limit, found))
    if measured is not None:
        same = note("kv-bytes-of", measured_bytes=measured, predicted_bytes=predicted, tokens=len(trial.tokens))
        checks.append(Check(note("kv-bytes"), measured == predicted, same))
    return proof, tuple(checks)


def cache_runtime(plan: Plan, mode: KvMode, folder: Path | None = None) -> RuntimeConfig:
    """The settings to measure a plan's folder under with a KV cache."""
    return RuntimeConfig(plan.memory, dynamic_option=plan.dynamic_option, kv=mode, cache_folder=folder)


def _bytes(plan: Plan, folder: Path, trial: CacheTrial, shape: KvShape) -> tuple[int | None, int]:
    """Bytes of the buffers that the engine makes for the sequence, None on other processors, and as predicted.

    Mapped to files, each buffer is a file of its size.
    """
    mode = KvMode.FLOAT if plan.kv is None else plan.kv.mode
    predicted = kv_target(DEFAULT_TARGET, "low").bytes(mode, shape, len(trial.tokens)).stored
    if platform.machine() not in _X86:
        return None, predicted
    with (
        Scratch("kv-cache") as work,
        EngineSession(folder, cache_runtime(plan, mode, work), context=trial.context) as engine,
    ):
        engine.begin(trial.tokens)
        found = sum(path.stat().st_size for path in work.glob("*.[kv]"))
    return found, predicted
