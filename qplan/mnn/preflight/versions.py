"""Ops and layouts that an engine's version does not know yet."""

from __future__ import annotations

from collections.abc import Iterator

from qplan.mnn.engines import C4_FUSION, FUSED_LINEAR, PYTHON_LLM
from qplan.mnn.files import GRAPH_FILE
from qplan.mnn.graph.binary import FUSED_LINEAR as FUSED_LINEAR_OP
from qplan.mnn.preflight.finding import Finding, error, warning
from qplan.mnn.preflight.model import ModelFolder


def check_version(model: ModelFolder) -> Iterator[Finding]:
    """The graph against the engine's version."""
    if model.engine < PYTHON_LLM:
        what = f"engine {model.engine} is older than {PYTHON_LLM}, the first that qplan has measured"
        yield warning("unmeasured-engine", GRAPH_FILE, what, "unknown", f"use an engine from {PYTHON_LLM}")
    if model.graph is None:
        return
    remedy = f"qplan emit --engine {model.engine}, or a newer engine"
    packed = [node.name for node in model.graph.all_nodes if node.packs_channels]
    if packed and model.engine < C4_FUSION:
        what = f"its attention is fused for packed channels ({len(packed)} ops); engines know that from {C4_FUSION}"
        yield error("c4-fusion", f"{GRAPH_FILE}, {packed[0]}", what, "a crash (SIGSEGV) in the first pass", remedy)
    fused = [node.name for node in model.graph.all_nodes if node.type == FUSED_LINEAR_OP]
    if fused and model.engine < FUSED_LINEAR:
        what = f"{len(fused)} projections are fused; engines know that from {FUSED_LINEAR}"
        remedy = "export with --disable_transformer_c4, or a newer engine"
        yield error("fused-linear", f"{GRAPH_FILE}, {fused[0]}", what, "the engine does not load the model", remedy)
