"""A folded model on the engine: other bytes, the same logits, a tied head included."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from qplan.errors import ToolError
from qplan.folding.fold import fold, fold_sites, save_folded
from qplan.formats import FP16
from qplan.mnn.build.exporter import export_skeleton
from qplan.mnn.build.skeleton import predict_files
from qplan.mnn.build.writer import build_model
from qplan.mnn.engine.session import EngineSession
from qplan.mnn.files import GRAPH_FILE, GRAPH_JSON_FILE
from qplan.mnn.graph.input_scale import insert_scale
from qplan.mnn.graph.json_graph import read_document
from qplan.mnn.runtime import RuntimeConfig
from qplan.model.load import load_model
from qplan.rounding.rounder import Rounder
from qplan.verify.reference import relative_error, torch_logits
from tests.support.mnn_models import ExportedModel


def test_a_folded_tied_model_computes_the_original_logits(
    tied_model: ExportedModel, token_ids: list[int], tmp_path: Path
) -> None:
    original = load_model(str(tied_model.folder))
    generator = torch.Generator().manual_seed(0)
    scales = {
        site.name: torch.randn(site.channels, generator=generator).mul(0.5).exp() for site in fold_sites(original)
    }
    save_folded(fold(original, scales), tmp_path / "folded")
    folded = load_model(str(tmp_path / "folded"))
    assert folded.embedding_scale is not None
    skeleton = export_skeleton(folded.folder, tmp_path / "skeleton", input_scale=folded.embedding_scale.numpy())
    formats = {spec.name: FP16 for spec in folded.card.tensors}
    store, runtime = Rounder(folded).store, RuntimeConfig("normal")
    build_model(skeleton, folded.card.tensors, formats, store, tmp_path / "model", runtime=runtime)
    with EngineSession(tmp_path / "model", RuntimeConfig("normal"), context=original.card.context) as engine:
        logits, stepwise = engine.logits(token_ids), engine.logits_stepwise(token_ids)
    expected = torch_logits(original, token_ids)
    # half precision of weights that are scaled at random
    assert relative_error(logits, expected) < 1e-3
    assert relative_error(stepwise, expected) < 1e-3
    predicted = predict_files(skeleton, {spec.op_name: FP16 for spec in folded.card.tensors})
    assert (tmp_path / "model" / GRAPH_FILE).stat().st_size == pytest.approx(predicted.graph, rel=0.01)
    added = skeleton.graph_bytes - tied_model.skeleton.graph_bytes
    assert 4 * 128 <= added <= 4 * 128 + 512


def test_a_graph_of_another_width_is_refused(tied_model: ExportedModel) -> None:
    document = read_document(tied_model.skeleton.folder / GRAPH_JSON_FILE)
    with pytest.raises(ToolError, match="width of 128, expected 3"):
        insert_scale(document, np.ones(3, np.float32))
