"""Scales as training leaves them, on the engine."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from qplan.formats import QuantFormat
from qplan.mnn.build.exporter import export_skeleton
from qplan.mnn.build.writer import build_model
from qplan.mnn.engine.session import EngineSession
from qplan.mnn.runtime import RuntimeConfig
from qplan.model.load import load_model
from qplan.rounding import Int8Activations
from qplan.rounding.rounder import Rounder
from qplan.rounding.stored_cache import FittedTensors, StoredCache
from qplan.sensitivity.joint import Variant
from qplan.sensitivity.kept_logits import kept_logits
from qplan.settings import MEMORIES
from qplan.tuning.straight import StraightActivations
from qplan.tuning.through import Batch, QuantizedModel
from qplan.tuning.trained import TrainedWeights
from qplan.verify.reference import stored_logits
from tests.support.moved_grids import moved_grids


@pytest.mark.parametrize("name", ["tied_model_dir", "untied_model_dir"])
def test_the_engine_loses_what_training_measures(name: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    loaded = load_model(str(request.getfixturevalue(name)))
    generator = torch.Generator().manual_seed(0)
    formats = {
        spec.name: QuantFormat(8 if spec.layer is None else 4, 64 if spec.in_features % 64 == 0 else 0)
        for spec in loaded.card.tensors
    }
    nearest = Rounder(loaded)
    grids = moved_grids(nearest, formats, generator)
    cache = StoredCache(tmp_path / "trained", {"model": loaded.card.sha256})
    for tensor, fmt in formats.items():
        cache.get(tensor, fmt, grids[tensor].stored, slice(0))
    rounder = replace(nearest, fitted=FittedTensors(cache, formats))

    skeleton, folder = export_skeleton(loaded.folder, tmp_path / "skeleton"), tmp_path / "built"
    build_model(skeleton, loaded.card.tensors, formats, rounder.store, folder, runtime=RuntimeConfig("normal"))
    tokens = torch.randint(3, loaded.card.vocabulary, (6, 32), generator=generator)
    expected = stored_logits(rounder, formats, tokens[0].tolist())
    with kept_logits(loaded, tokens.numpy()) as reference:
        for memory in MEMORIES:
            plan = Variant(formats, memory, StraightActivations.of(Int8Activations()))
            model = QuantizedModel(loaded, plan, TrainedWeights(loaded, nearest, grids=grids))
            promised = model.stats(Batch(tokens, model.exact(tokens))).kl_nats
            with EngineSession(folder, RuntimeConfig(memory)) as engine:
                assert reference.compare(engine.logits).kl_nats == pytest.approx(
                    promised, rel=1e-4 if memory == "normal" else 0.02
                )
                if memory == "normal":
                    found = engine.logits(tokens[0].tolist())
                    assert np.linalg.norm(found - expected) <= 1e-5 * np.linalg.norm(expected)
