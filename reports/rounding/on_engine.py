"""Losses of built models and of llmexport's own exports, on the engine."""

from __future__ import annotations

from pathlib import Path

from qplan.mnn.build.exporter import export
from qplan.mnn.build.exporter_source import ExportOptions, find_exporter
from qplan.mnn.build.skeleton import Skeleton
from qplan.mnn.build.writer import build_model
from qplan.mnn.engine.session import EngineSession
from qplan.mnn.runtime import RuntimeConfig
from qplan.rounding.rounder import Rounder
from qplan.sensitivity.kept_logits import KeptLogits
from reports.rounding.subject import BLOCK, Subject

NORMAL = RuntimeConfig("normal")


def build(subject: Subject, skeleton: Skeleton, rounder: Rounder, bits: int, out: Path) -> None:
    """Build a model with all linears at one width."""
    tensors, formats = subject.loaded.card.tensors, subject.formats(bits)
    build_model(skeleton, tensors, formats, rounder.store, out, runtime=NORMAL, replace=True)


def exported_nats(subject: Subject, bits: int, out: Path, ref: KeptLogits, *others: str) -> float | None:
    """Export with llmexport's own quantizer, and run it under memory normal; None where it cannot pack the width."""
    if bits not in find_exporter().packable_bits:
        return None
    head = subject.formats(bits)[subject.loaded.architecture.head].bits
    options = ExportOptions(bits, BLOCK, lm_bits=head, lm_block=BLOCK, others=others)
    export(subject.loaded.folder, out, options, replace=True)
    return engine_nats(subject, out, ref)


def engine_nats(subject: Subject, folder: Path, reference: KeptLogits) -> float:
    """Run a folder under memory normal."""
    with EngineSession(folder, NORMAL, context=subject.loaded.card.context) as engine:
        return reference.compare(engine.logits).kl_nats
