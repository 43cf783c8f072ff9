"""Folding in a run: decided once, on other tokens than it is fitted to, and never mixed up with the original."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from qplan.calibration import Text, tokenize
from qplan.errors import MeasurementError, StaleArtifactError
from qplan.folding import decide as folding
from qplan.folding import evidence as fold_evidence
from qplan.folding.analyzed import load_analyzed
from qplan.folding.decide import check_equal, fitted_scales, run_fold
from qplan.folding.evidence import gather_evidence
from qplan.folding.fold import fold, fold_sites, save_folded
from qplan.model.load import LoadedModel, load_model
from qplan.model.replace import with_weights
from qplan.notes import Note
from qplan.run.calibration import CalibrationSet
from qplan.run.fold import FoldRecord, fold_of
from qplan.run.folder import RunFolder
from tests.support.tiny_models import VOCABULARY, words


@pytest.fixture(scope="module")
def outlying(qwen2: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    """A folder with a model whose final norm has outliers: untied from what folding would do by its plain head."""
    folder = tmp_path_factory.mktemp("outlying") / "model"
    factors = torch.ones(64)
    factors[7] = 0.02
    inner = [site for site in fold_sites(qwen2) if not site.tied]
    save_folded(fold(qwen2, {site.name: factors for site in inner if site.channels == 64}), folder)
    return load_model(str(folder))


@pytest.fixture(scope="module")
def tokens(outlying: LoadedModel) -> CalibrationSet:
    text = Text((words(600, seed=1),), "words", None)
    limits = {"samples": 4, "seq_len": 32, "seed": 0, "context": 128, "vocabulary": VOCABULARY, "fit_tokens": 256}
    return tokenize(text, outlying.tokenizer, **limits)


def _fold(run: RunFolder, loaded: LoadedModel, tokens: CalibrationSet) -> tuple[LoadedModel, Note]:
    return run_fold(
        run,
        loaded,
        tokens,
        "low",
        dynamic_option=0,
        rounding="auto",
        batch_size=2,
        jobs=1,
        device="cpu",
        say=lambda _: None,
        progress=lambda *_: None,
    )


def _square_roots(loaded: LoadedModel, *_: object, **__: object) -> dict[str, Tensor]:
    """Scales that undo the outliers; the fit has its own tests."""
    scale = torch.ones(64)
    scale[7] = 50
    return {site.name: scale for site in fold_sites(loaded) if site.channels == 64 and not site.tied}


def test_scales_before_zeros_stay_where_they_are(qwen2: LoadedModel, tokens: CalibrationSet) -> None:
    inside = "model.layers.1."
    dead = [inside + name for name in ("self_attn.o_proj", "mlp.down_proj")]
    with with_weights(qwen2, {name: torch.zeros_like(qwen2.weight(name)) for name in dead}):
        scales = fitted_scales(qwen2, torch.from_numpy(tokens.tokens[:1]), "low")
    assert set(scales) == {site.name for site in fold_sites(qwen2) if not site.name.startswith(inside)}
    assert all(torch.isfinite(scale).all() for scale in scales.values())


def test_a_fold_that_pays_is_kept_and_found_again(
    outlying: LoadedModel, tokens: CalibrationSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folding, "fitted_scales", _square_roots)
    run = RunFolder(tmp_path / "run")
    folded, note = _fold(run, outlying, tokens)
    assert folded.folder == run.folded.resolve()
    assert check_equal(outlying, folded, torch.from_numpy(tokens.tokens)) <= 1e-5
    record = FoldRecord.read(run.fold)
    assert record.losses["folded"]["int8, memory low"] < 0.9 * record.losses["original"]["int8, memory low"]
    assert "weights are folded" in str(note)
    # what the original was rounded to is of no use any more
    assert len(list(run.rounding.glob("tensors-*"))) == 1
    assert folded.card.source == outlying.card.source
    assert fold_of(run, folded.card) == record
    assert fold_of(run, outlying.card) is None
    model = load_analyzed(run, folded.card, lambda _: None)
    assert (model.loaded.card.sha256, model.original.card.sha256) == (folded.card.sha256, outlying.card.sha256)
    one = load_analyzed(run, folded.card, lambda _: None, stream_original=True)
    assert (one.loaded.streamed, one.original.streamed) == (False, True)
    assert one.original.card.sha256 == outlying.card.sha256
    plain = load_analyzed(run, outlying.card, lambda _: None)
    assert plain.loaded is plain.original
    monkeypatch.setattr(folding, "fitted_scales", lambda *_, **__: pytest.fail("decided once"))
    assert _fold(run, outlying, tokens)[0].card.sha256 == folded.card.sha256
    for name in ("generation_config.json", "model.safetensors"):
        path = run.folded / name
        whole = path.read_bytes()
        path.write_bytes(whole + b"\n" if path.suffix == ".json" else whole[:-4] + bytes(4))
        with pytest.raises(StaleArtifactError, match="--restart"):
            _fold(run, outlying, tokens)
        path.write_bytes(whole)


def test_a_fold_that_does_not_pay_is_left_out_and_said(
    qwen2: LoadedModel, tokens: CalibrationSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folding, "fitted_scales", _square_roots)
    run = RunFolder(tmp_path / "run")
    same, note = _fold(run, qwen2, tokens)
    assert same is qwen2
    assert "does not pay" in str(note)
    assert not run.folded.exists()
    assert len(list(run.rounding.glob("tensors-*"))) == 1
    assert FoldRecord.read(run.fold).folded_sha256 is None
    assert fold_of(run, qwen2.card) is None


@pytest.mark.slow
def test_scales_fitted_to_some_of_the_inputs_are_about_the_same(
    qwen2: LoadedModel, tokens: CalibrationSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit = torch.from_numpy(tokens.fit)
    told: list[tuple[int, int]] = []
    whole = fitted_scales(qwen2, fit, "low", progress=lambda done, total: told.append((done, total)))
    sites = len(fold_sites(qwen2))
    assert told[-1] == (sites, sites)
    assert len(told) == sites + -(-len(fit) // 4)
    evidence = gather_evidence(qwen2, fit, fold_sites(qwen2))
    monkeypatch.setattr(fold_evidence, "INPUT_BYTES", sum(seen.inputs.numel() for seen in evidence))
    some = fitted_scales(qwen2, fit, "low")
    assert set(whole) == set(some) == {site.name for site in fold_sites(qwen2)}
    for name in whole:
        shared = torch.stack([whole[name].log(), some[name].log()])
        assert float(torch.corrcoef(shared)[0, 1]) > 0.9


def test_another_function_is_refused(qwen2: LoadedModel, tokens: CalibrationSet) -> None:
    folded = fold(qwen2, _square_roots(qwen2))
    folded.weight("model.layers.1.mlp.down_proj").mul_(1.01)
    with pytest.raises(MeasurementError, match="--fold off"):
        check_equal(qwen2, folded, torch.from_numpy(tokens.tokens))
