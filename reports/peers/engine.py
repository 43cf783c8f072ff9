"""Losses of whole plans on MNN's engine: built by qplan's writer, run under both memory settings."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from qplan.formats import QuantFormat
from qplan.mnn.build.exporter import export_skeleton
from qplan.mnn.build.exporter_source import find_exporter
from qplan.mnn.build.skeleton import Skeleton, folder_bytes
from qplan.mnn.build.writer import build_model
from qplan.mnn.engine.session import EngineSession
from qplan.mnn.runtime import RuntimeConfig
from qplan.model.load import LoadedModel
from qplan.rounding.rounder import Rounder
from qplan.sensitivity.kept_logits import KeptLogits
from qplan.sensitivity.metrics import TokenStats
from qplan.settings import Memory
from reports.peers.judge import Entry, Verdict, verdicts_of
from reports.peers.plans import distinct

Formats = Mapping[str, QuantFormat]


def open_skeleton(loaded: LoadedModel, folder: Path) -> Skeleton:
    """The exported graph of a model, made once."""
    home = folder / f"skeleton-{loaded.card.sha256[:8]}"
    if home.is_dir():
        return Skeleton.open(home)
    print(f"exporting the graph with {find_exporter(None).version}")
    return export_skeleton(loaded.folder, home)


def measure_plans(
    plans: Mapping[str, Formats],
    skeleton: Skeleton,
    reference: KeptLogits,
    memory: Memory,
    *,
    rounder: Rounder,
    folder: Path,
) -> dict[str, tuple[TokenStats, int]]:
    """Build every plan and compare its logits with the reference's.

    Args:
        plans: formats by tensor name, by label.
        skeleton: the exported graph.
        reference: the model in FP32.
        memory: the engine's setting.
        rounder: chooses the integers.
        folder: where models are kept while they are measured.

    Returns:
        by label: the comparison of every token, and the bytes of all files on disk.
    """
    found = {}
    for label, formats in plans.items():
        # a folder of its own: another run may share the parent
        with tempfile.TemporaryDirectory(dir=folder) as parent:
            home = Path(parent) / "built"
            _build(skeleton, formats, rounder, home)
            with EngineSession(home, RuntimeConfig(memory), context=rounder.loaded.card.context) as engine:
                found[label] = reference.compare(engine.logits), folder_bytes(home).total
        print(f"engine, memory {memory}, rounding {rounder.rounding}: {len(found)} of {len(plans)}", flush=True)
    return found


def run_on_engine(
    entries: Sequence[Entry],
    skeleton: Skeleton,
    reference: KeptLogits,
    memory: Memory,
    *,
    rounder: Rounder,
    folder: Path,
) -> list[Verdict]:
    """Measure every plan on the engine; equal plans once."""
    plans = distinct(entry.formats for entry in entries)
    found = measure_plans(plans, skeleton, reference, memory, rounder=rounder, folder=folder)
    stats = {key: stats for key, (stats, _) in found.items()}
    totals = {key: total for key, (_, total) in found.items()}
    return verdicts_of(entries, stats, totals, memory, rounder.rounding)


def _build(skeleton: Skeleton, formats: Formats, rounder: Rounder, home: Path) -> None:
    build_model(skeleton, rounder.loaded.card.tensors, formats, rounder.store, home, runtime=RuntimeConfig())
