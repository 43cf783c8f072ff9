"""Whole plans a layer at a time, with weights that stand in for integers that nobody chose yet."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from qplan.formats import INT4, INT8
from qplan.model.load import LoadedModel
from qplan.rounding import rtn
from qplan.rounding.moments import gather_moments
from qplan.rounding.rounder import Rounder
from qplan.run.calibration import CalibrationSet
from qplan.sensitivity.analysis import open_analysis
from qplan.sensitivity.joint import joint_losses
from qplan.sensitivity.stand_ins import StandIns, stand_in_losses, stand_ins_of
from qplan.tensors import Role


@pytest.mark.parametrize("name", ["qwen2", "llama"])
def test_a_layer_at_a_time_loses_what_the_whole_model_does(
    tiny_models: dict[str, LoadedModel], calibration: CalibrationSet, name: str
) -> None:
    loaded = tiny_models[name]
    plans = [
        {spec.name: INT8 if spec.role is Role.HEAD else fmt for spec in loaded.card.tensors} for fmt in (INT4, INT8)
    ]
    plans = [{n: fmt.resolve(loaded.card.tensor(n).in_features) for n, fmt in plan.items()} for plan in plans]
    tokens = torch.from_numpy(calibration.tokens)
    with open_analysis(loaded, calibration, (INT8, INT4), "low") as analysis:
        found = stand_in_losses(analysis, plans, analysis.batches, stand_ins_of(analysis, Rounder(loaded)))
    whole = joint_losses(loaded, tokens, {str(index): plan for index, plan in enumerate(plans)})
    assert found == pytest.approx([whole["0"].kl_nats, whole["1"].kl_nats], rel=1e-6)


def test_an_error_is_brought_to_the_size_that_was_estimated(
    qwen2: LoadedModel, calibration: CalibrationSet, tmp_path: Path
) -> None:
    name = "model.layers.0.mlp.up_proj"
    moments = gather_moments(qwen2, torch.from_numpy(calibration.tokens), tmp_path, inputs={})
    fmt = INT4.resolve(qwen2.card.tensor(name).in_features)
    weight, seen = qwen2.weight(name).float(), moments.of(name)
    nearest = rtn(weight, fmt).dequantize() - weight
    found = StandIns(qwen2, noise={(name, fmt): 0.01}, moments=moments).get(name, fmt) - weight
    noise, signal = (float(((part @ seen) * part).sum()) for part in (found, weight))
    assert noise / signal == pytest.approx(0.01, rel=1e-4)
    assert torch.allclose(found / found.norm(), nearest / nearest.norm(), atol=1e-6)


@pytest.mark.parametrize("name", ["qwen2", "gemma2"])
def test_rows_that_are_looked_up_are_those_of_the_whole(
    tiny_models: dict[str, LoadedModel], calibration: CalibrationSet, tmp_path: Path, name: str
) -> None:
    tiny = tiny_models[name]
    head = tiny.architecture.head
    assert tiny.card.tensor(head).tied
    moments = gather_moments(tiny, torch.from_numpy(calibration.tokens), tmp_path, inputs={})
    fmt = INT4.resolve(tiny.card.tensor(head).in_features)
    stored, ids = StandIns(tiny, noise={(head, fmt): 0.05}, moments=moments), torch.tensor([[3, 1], [3, 0]])
    weight = tiny.weight(head)
    assert torch.equal(stored.look_up(head, fmt, lambda rows: weight[rows], ids), stored.get(head, fmt)[ids])
    assert not torch.equal(stored.get(head, fmt), weight)
