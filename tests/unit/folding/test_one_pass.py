"""One pass there and back: the losses of a pass over all output features, and of a model that was folded first."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from statistics import mean, median
from typing import Any

import pytest
import torch

from qplan.folding.fold import fold
from qplan.folding.one_pass import OnePass, label_seeds
from qplan.formats import INT4, INT8, QuantFormat
from qplan.model.layerwise import WayBack, WayThere
from qplan.model.load import LoadedModel
from qplan.rounding.moments import gather_moments
from qplan.rounding.rounder import Rounder
from qplan.run.calibration import CalibrationSet
from qplan.run.fold_draft import FoldDraft
from qplan.run.table import SensitivityTable
from qplan.sensitivity.analysis import open_analysis
from qplan.sensitivity.embedding import measure_embedding
from qplan.sensitivity.stored_weights import StoredWeights
from tests.support.whole_tables import estimated_table, measured_table

FORMATS = (INT8, QuantFormat(4, 0), INT4)
ALL = 10_000
"""More output features than any tensor has."""


def _table(
    loaded: LoadedModel,
    calibration: CalibrationSet,
    folder: Path,
    *,
    drawn: int = ALL,
    rounding: str = "rtn",
    fold: bool,
) -> tuple[SensitivityTable, dict[str, Any]]:
    """The table of one pass, and the scales that it moved."""
    judged = list(torch.from_numpy(calibration.tokens).split(4))
    fit = list(torch.from_numpy(calibration.fit).split(4))
    moments = None
    if rounding != "rtn":
        moments = gather_moments(loaded, torch.from_numpy(calibration.fit), folder / "moments", inputs={})
    opened = open_analysis(loaded, calibration, FORMATS, "low", rounder=Rounder(loaded, rounding), drawn=drawn)
    with opened as begun:
        analysis = replace(begun, stored=StoredWeights(loaded))
        there = WayThere(loaded, judged + fit, kept=len(judged + fit))
        for index in range(len(loaded.layers)):
            for number in range(len(there.batches)):
                there.run(index, number)
        draft = FoldDraft(folder / "draft.json", {})
        one = OnePass(analysis, fit, moments, drawn, fold, draft)
        seeds = label_seeds(calibration.seed, len(there.batches))
        one.run(WayBack(loaded, judged + fit, there.between, seeds, drawn=one.views.drawn_of))
        measure_embedding(analysis)
        rows = [row for n, f, m in analysis.entries() for row in analysis.rows((n, f.name, m), "gradient")]
        return analysis.table("gradient", rows), draft.scales


def _equal(ours: SensitivityTable, theirs: SensitivityTable, tolerance: float) -> None:
    for memory in ("low", "normal"):
        for name, row in theirs.losses(memory).items():
            for fmt, loss in row.items():
                mine = ours.losses(memory)[name][fmt]
                assert mine.kl_nats == pytest.approx(loss.kl_nats, rel=tolerance), (name, fmt, memory)


def test_with_all_output_features_losses_are_those_of_a_whole_pass(
    tiny: LoadedModel, calibration: CalibrationSet, tmp_path: Path
) -> None:
    ours, scales = _table(tiny, calibration, tmp_path, fold=False)
    assert scales == {}
    _equal(ours, estimated_table(tiny, calibration, FORMATS), 2e-3)


def test_the_signal_to_noise_ratio_is_that_of_the_output(
    llama: LoadedModel, calibration: CalibrationSet, tmp_path: Path
) -> None:
    ours, _ = _table(llama, calibration, tmp_path, fold=False)
    measured = measured_table(llama, calibration, FORMATS)
    # tables average decibels over batches, which costs some tenths where a batch reaches few outputs
    off = [
        abs(ours.losses("normal")[name][fmt].sqnr_db - loss.sqnr_db)
        for name, row in measured.losses("normal").items()
        for fmt, loss in row.items()
    ]
    assert median(off) < 0.05
    assert max(off) < 0.6


def test_losses_with_moved_scales_are_those_of_a_model_that_was_folded_first(
    qwen2: LoadedModel, calibration: CalibrationSet, tmp_path: Path
) -> None:
    ours, scales = _table(qwen2, calibration, tmp_path, fold=True)
    assert scales
    folded = fold(qwen2, {name: torch.tensor(scale) for name, scale in scales.items()})
    theirs = estimated_table(folded, calibration, FORMATS)
    off = [
        abs(math.log(ours.losses(memory)[name][fmt].kl_nats / loss.kl_nats))
        for memory in ("low", "normal")
        for name, row in theirs.losses(memory).items()
        for fmt, loss in row.items()
    ]
    # an activation that lies between two steps may go to the other one, and there are few tokens
    assert median(off) < 0.001
    assert max(off) < 0.04


def test_scales_stay_where_they_are_unless_moving_them_pays(
    llama: LoadedModel, calibration: CalibrationSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def harmful(evidence: Any, *_: object, **__: object) -> torch.Tensor:  # noqa: ANN401
        generator = torch.Generator().manual_seed(0)
        return torch.exp(3 * torch.randn(evidence.site.channels, generator=generator))

    monkeypatch.setattr("qplan.folding.one_pass.fit_scales", harmful)
    ours, scales = _table(llama, calibration, tmp_path, fold=True)
    assert scales == {}
    _equal(ours, estimated_table(llama, calibration, FORMATS), 2e-3)


def test_half_the_output_features_say_nearly_the_same(
    qwen2: LoadedModel, calibration: CalibrationSet, tmp_path: Path
) -> None:
    exact, _ = _table(qwen2, calibration, tmp_path / "a", fold=False)
    some, _ = _table(qwen2, calibration, tmp_path / "b", drawn=24, fold=False)
    assert some.conditions.drawn == 24
    scaled = [
        (some.losses()[name][fmt].kl_nats - loss.kl_nats) / some.losses()[name][fmt].stderr_nats
        for name, row in exact.losses().items()
        for fmt, loss in row.items()
        if loss.kl_nats
    ]
    assert sum(abs(z) < 2 for z in scaled) > 0.9 * len(scaled)
    assert any(abs(z) > 1e-9 for z in scaled)


def test_rounding_is_fitted_to_the_moments_given(
    qwen2: LoadedModel, calibration: CalibrationSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qplan.folding.curvatures.FEW_TOKENS", 1)
    nearest, _ = _table(qwen2, calibration, tmp_path / "a", fold=False)
    fitted, _ = _table(qwen2, calibration, tmp_path / "b", rounding="gptq", fold=False)
    name = qwen2.card.tensors[0].name
    assert fitted.losses("normal")[name]["int4"].kl_nats < nearest.losses("normal")[name]["int4"].kl_nats


def test_a_few_refined_features_say_what_all_would(
    qwen2: LoadedModel, calibration: CalibrationSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qplan.folding.curvatures.FEW_TOKENS", 1)
    losses = {}
    for refined in (ALL, 12, 0):
        monkeypatch.setattr("qplan.sensitivity.weight_errors.REFINED", max(1, refined))
        if not refined:  # error feedback alone
            monkeypatch.setattr(
                "qplan.sensitivity.rows.RowSample.ratio", lambda *_: (torch.tensor(1.0), torch.tensor(0))
            )
        table, _ = _table(qwen2, calibration, tmp_path / str(refined), drawn=24, rounding="gptq", fold=False)
        losses[refined] = table.losses("normal")
    off = {
        refined: [
            math.log(losses[refined][name]["int4"].kl_nats / row["int4"].kl_nats) for name, row in losses[ALL].items()
        ]
        for refined in (12, 0)
    }
    assert abs(mean(off[12])) < 0.03 < mean(off[0])
    assert 0 < max(map(abs, off[12])) < 0.25
