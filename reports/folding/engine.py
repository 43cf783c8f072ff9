"""Folded and unfolded models at one width on the engine: loss, bytes, and speed in interleaved rounds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from qplan.formats import QuantFormat
from qplan.mnn.build.exporter import export_skeleton
from qplan.mnn.build.skeleton import folder_bytes
from qplan.mnn.engine.session import EngineSession
from qplan.mnn.engines import EngineTarget, EngineVersion
from qplan.mnn.runtime import RuntimeConfig
from qplan.model.load import LoadedModel, load_model
from qplan.notes import text_note
from qplan.rounding.rounder import Rounder
from qplan.sensitivity.kept_logits import kept_logits
from qplan.settings import MEMORIES
from qplan.verify.bench import BuildBench
from qplan.verify.measure import Trial

_ROUNDS, _DECODE_ROWS = 5, 4


@dataclass(frozen=True)
class OnEngine:
    """One built model under memory low with ``dynamic_option`` 0, and under memory normal."""

    low_nats: float
    low_decode_nats: float
    normal_nats: float
    weight_bytes: int
    graph_bytes: int
    decode_tokens_per_s: float
    prefill_tokens_per_s: float


def on_engine(
    reference: LoadedModel,
    rounders: Mapping[str, Rounder],
    formats: Mapping[str, QuantFormat],
    rows: NDArray[np.int64],
    work: Path,
) -> dict[str, OnEngine]:
    """Build and run one model per rounder.

    Args:
        reference: the FP32 model that all are compared with.
        rounders: by label; their models must be on disk.
        formats: format by tensor name.
        rows: token ids ``[rows, seq_len]``.
        work: where models are built.
    """
    built: dict[str, Path] = {}
    losses: dict[str, dict[str, float]] = {}
    context = reference.card.context
    target = EngineTarget.of(EngineVersion.installed())
    with kept_logits(reference, rows) as answers:
        for label, rounder in rounders.items():
            loaded = load_model(str(rounder.loaded.folder))
            scale = loaded.embedding_scale
            skeleton = export_skeleton(
                loaded.folder,
                work / label / "skeleton",
                input_scale=None if scale is None else scale.numpy(),
                replace=True,
            )
            bench = BuildBench(
                loaded=loaded,
                skeleton=skeleton,
                trial=Trial(answers),
                text=text_note(""),
                text_sha256="",
                baselines=work,
                say=print,
                target=target,
            )
            built[label] = work / label / "model"
            bench.build(formats, built[label], RuntimeConfig(), rounder)
            losses[label] = {}
            for memory in MEMORIES:
                with EngineSession(built[label], RuntimeConfig(memory, threads=1), context=context) as engine:
                    losses[label][memory] = answers.compare(engine.logits).kl_nats
                    if memory == "low":
                        losses[label]["decode"] = answers.compare(engine.logits_stepwise, _DECODE_ROWS).kl_nats
            print(label, losses[label], flush=True)
    speeds = _speeds(built, context)
    return {
        label: OnEngine(
            low_nats=losses[label]["low"],
            low_decode_nats=losses[label]["decode"],
            normal_nats=losses[label]["normal"],
            weight_bytes=folder_bytes(folder).weight,
            graph_bytes=folder_bytes(folder).graph,
            decode_tokens_per_s=max(decode for decode, _ in speeds[label]),
            prefill_tokens_per_s=max(prefill for _, prefill in speeds[label]),
        )
        for label, folder in built.items()
    }


def _speeds(built: Mapping[str, Path], context: int) -> dict[str, list[tuple[float, float]]]:
    """Decode and prefill speed in tokens per second, model by model in several rounds."""
    speeds: dict[str, list[tuple[float, float]]] = {label: [] for label in built}
    for _ in range(_ROUNDS):
        for label, folder in built.items():
            with EngineSession(folder, RuntimeConfig("low", threads=1), context=context) as engine:
                sample = engine.measure_speed(128, 64, 3)
                speeds[label].append((sample.decode_tokens_per_s, sample.prefill_tokens_per_s))
    return speeds
