"""Looking at the engine's residual stream through the head, and finding the layer that is wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from qplan.formats import FP16, QuantFormat
from qplan.mnn.engine.session import EngineSession
from qplan.mnn.graph.lens import look_after, open_lens
from qplan.mnn.runtime import RuntimeConfig
from qplan.model.load import load_model
from qplan.rounding.rounder import Rounder
from qplan.sensitivity.kept_logits import kept_logits
from qplan.verify.climb import _RungBench, _Step
from qplan.verify.lens import lens_logits
from qplan.verify.reference import relative_error
from tests.support.mnn_models import ExportedModel


@pytest.mark.parametrize("name", ["tied", "untied"])
def test_engine_and_torch_agree_after_every_layer(
    name: str, request: pytest.FixtureRequest, token_ids: list[int], tmp_path: Path
) -> None:
    model: ExportedModel = request.getfixturevalue(f"{name}_model")
    model.build(model.tensors(model.formats(FP16)), tmp_path / "m")
    document = open_lens(tmp_path / "m", tmp_path)
    expected = lens_logits(load_model(str(model.folder)), token_ids)
    assert len(expected) == 3
    for layers in (0, 1):
        folder = look_after(tmp_path / "m", document, layers, tmp_path / "lens")
        with EngineSession(folder, RuntimeConfig("normal")) as engine:
            found = engine.logits(token_ids)
        assert relative_error(found, expected[layers]) < 1e-2  # halves against floats
        assert relative_error(found, expected[layers + 1]) > 0.1


@pytest.mark.parametrize(
    ("op_name", "layer"), [("/layers.0/mlp/up_proj/Linear", 0), ("/layers.1/self_attn/q_proj/Linear", 1)]
)
def test_the_wrong_layer_is_found(tied_model: ExportedModel, op_name: str, layer: int, tmp_path: Path) -> None:
    # weights of two bits where the rung claims halves
    tied_model.build(tied_model.tensors(tied_model.formats(FP16) | {op_name: QuantFormat(2)}), tmp_path / "m")
    loaded = load_model(str(tied_model.folder))
    step = _Step("fp16", {spec.name: FP16 for spec in loaded.card.tensors}, Rounder(loaded), tmp_path / "m")
    rows = np.random.default_rng(0).integers(0, 320, (2, 32))
    with kept_logits(loaded, rows) as reference:
        judge = _RungBench(loaded, tied_model.skeleton, reference, "low", tmp_path)
        rung = judge.rung(step, tmp_path / "m", 1e-3)
        broke = judge.where(step, tmp_path / "m", rung)
    assert not rung.computes
    assert (broke.layer, broke.what) == (layer, f"layer {layer} of 2")
    assert broke.error_before <= rung.exact_limit < broke.error_after
