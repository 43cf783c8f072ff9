from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from qplan.cost.file_bytes import estimate_fixed
from qplan.formats import INT4, INT8
from qplan.model.load import LoadedModel
from qplan.planner.budget import Budget
from qplan.planner.planning import make_plan
from qplan.rounding import Int8Activations
from qplan.rounding.run_rounder import run_rounder
from qplan.rounding.stored_cache import FittedTensors
from qplan.run.calibration import CalibrationSet
from qplan.run.folder import RunFolder
from qplan.run.plan import Tuning
from qplan.sensitivity.joint import Variant
from qplan.tuning.judge import Tuned, in_order, with_scales
from qplan.tuning.kept import built_rounder, fit_of, scales_of, schedule_of
from tests.support.whole_tables import estimated_table

UP = "model.layers.1.mlp.up_proj"


@pytest.mark.parametrize(("ships", "head"), [(True, True), (True, False), (False, False)])
def test_what_was_built_of_a_plan_is_what_the_run_kept_of_its_fit(
    qwen2: LoadedModel,
    calibration: CalibrationSet,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    ships: bool,
    head: bool,
) -> None:
    monkeypatch.setattr("qplan.rounding.rounder.FEW_TOKENS", 1)
    run = RunFolder(tmp_path / "run")
    table = estimated_table(qwen2, calibration, (INT8, INT4))
    plan = make_plan(table, Budget.parse("int4"), estimate_fixed(table.model))
    rounder = run_rounder(run, qwen2, calibration, "gptq")
    assert built_rounder(run, rounder, calibration, plan) is rounder
    fit = fit_of(run, rounder, calibration, plan.formats)
    fit.run()
    assert not (run.tuning / fit.cache.folder.name).exists()
    told = Tuning("sequential", ships=ships, head=head, tokens=64, before_nats=0.02, after_nats=0.01)
    # as another process finds it
    found = built_rounder(run, run_rounder(run, qwen2, calibration, "gptq"), calibration, plan.tuned(told))
    for name, fitted in ((UP, ships), ("lm_head", head)):
        fmt = plan.formats[name]
        stored, own, before = found.store(name, fmt), fit.cache.read(name, fmt), rounder.store(name, fmt)
        assert own is not None
        assert not torch.equal(own.dequantize(), before.dequantize())
        assert torch.equal(stored.dequantize(), (own if fitted else before).dequantize())
        pieces = torch.cat([part.dequantize() for _, part in found.pieces(name, fmt)])
        assert torch.equal(pieces, stored.dequantize())


@pytest.mark.parametrize("base", ["own", "sequential", "sequential head", "sequential head layers"])
def test_trained_scales_of_a_plan_are_found_again(
    qwen2: LoadedModel, calibration: CalibrationSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, base: str
) -> None:
    monkeypatch.setattr("qplan.rounding.rounder.FEW_TOKENS", 1)
    run = RunFolder(tmp_path / "run")
    table = estimated_table(qwen2, calibration, (INT8, INT4))
    plan = make_plan(table, Budget.parse("int4"), estimate_fixed(table.model))
    rounder, before = run_rounder(run, qwen2, calibration, "gptq"), None
    if base != "own":
        layers = "layers" in base
        fit = fit_of(run, rounder, calibration, plan.formats, layers=layers)
        fit.run()
        (*_, whole) = in_order(fit)
        assert (whole.head, whole.layers) == (True, layers)
        before = Tuning(
            "sequential",
            ships=True,
            head="head" in base,
            tokens=64,
            before_nats=0.02,
            after_nats=0.01,
            layers=layers,
        )
        formats = fit.shipped(head=before.head)
        rounder = replace(rounder, fitted=FittedTensors(fit.cache, formats))
    schedule = schedule_of(calibration).first(3)
    shipped = Variant(plan.formats, plan.memory, Int8Activations("prefill", 2))
    start = Tuned(rounder, before)
    assert start.base == base
    scales = scales_of(run, start, calibration, shipped, schedule)
    scales.run()
    assert not list(run.tuning.glob("*/*"))
    choice = with_scales(scales, start)
    told = Tuning(
        choice.method,
        ships=True,
        head=choice.head,
        tokens=64,
        before_nats=0.02,
        after_nats=0.01,
        steps=choice.steps,
        dynamic_option=choice.option,
        layers=choice.layers,
    )
    # as another process finds it
    found = built_rounder(run, run_rounder(run, qwen2, calibration, "gptq"), calibration, plan.tuned(told))
    for name in (UP, "lm_head"):
        fmt = plan.formats[name]
        assert torch.equal(found.store(name, fmt).dequantize(), choice.rounder.store(name, fmt).dequantize())
    own = scales.cache.read(UP, plan.formats[UP])
    assert own is not None
    assert torch.equal(found.store(UP, plan.formats[UP]).dequantize(), own.dequantize())


def test_integers_for_engines_that_add_in_16_bits_are_others(
    qwen2: LoadedModel, calibration: CalibrationSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qplan.rounding.rounder.FEW_TOKENS", 1)
    run = RunFolder(tmp_path / "run")
    rounder = run_rounder(run, qwen2, calibration, "gptq")
    formats = {spec.name: spec.resolve(INT8) for spec in qwen2.card.tensors}
    plain, limited = (
        fit_of(run, replace(rounder, within_int16=limit), calibration, formats).cache.folder for limit in (False, True)
    )
    assert plain != limited
