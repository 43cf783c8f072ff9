"""Folds that are trained end to end: gradients of the noise alone, a lower loss of what is built, and kills."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from qplan.calibration import Text, tokenize
from qplan.cli.main import main
from qplan.cost.one_pass import OnePassCost, OnePassOptions
from qplan.cost.shape import Shape
from qplan.errors import InputError, StaleArtifactError
from qplan.folding.analyzed import load_analyzed
from qplan.folding.evidence import gather_evidence
from qplan.folding.fit import root_mean_square_scales
from qplan.folding.fold import fold, fold_sites, save_folded
from qplan.folding.train import run_fold_training
from qplan.folding.trained import FoldTraining
from qplan.jobs.options import AnalyzeOptions
from qplan.model.load import LoadedModel, load_model
from qplan.notes import Note
from qplan.rounding import Int8Activations
from qplan.rounding.rtn import rtn
from qplan.run.calibration import CalibrationSet
from qplan.run.fold import FoldRecord
from qplan.run.folder import RunFolder
from qplan.run.table import SensitivityTable
from qplan.sensitivity.joint import joint_losses
from qplan.settings import DynamicOption
from qplan.tuning.schedule import Schedule
from qplan.tuning.through import Batch, LossyModel
from qplan.uniform import uniform_formats
from tests.support.costs import COUNTING
from tests.support.tiny_models import VOCABULARY, words

ROWS, HELD_OUT, LENGTH = 24, 8, 32


@pytest.fixture(scope="module")
def outlying(qwen2: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    """A folder with a model that has outliers in every stream that can be folded."""
    folder = tmp_path_factory.mktemp("outlying") / "model"
    generator = torch.Generator().manual_seed(3)
    scales = {
        site.name: torch.exp(torch.randn(site.channels, generator=generator) * -1.2)
        for site in fold_sites(qwen2)
        if not site.tied
    }
    save_folded(fold(qwen2, scales), folder)
    return load_model(str(folder))


def tokens(seed: int, rows: int = ROWS + HELD_OUT) -> Tensor:
    return torch.randint(0, VOCABULARY, (rows, LENGTH), generator=torch.Generator().manual_seed(seed))


def a_training(loaded: LoadedModel, path: Path | None = None, *, option: DynamicOption = 0) -> FoldTraining:
    whole = Schedule.of(ROWS, HELD_OUT, LENGTH)
    schedule = replace(whole, order=np.resize(whole.order.flatten(), (12, 4)), fixed_rate=0.1)
    return FoldTraining(loaded, tokens(0), Int8Activations("prefill", option), schedule, {"model": "one"}, path)


@pytest.mark.parametrize("option", [0, 2])
def test_without_scales_inputs_are_the_engines(
    outlying: LoadedModel, option: DynamicOption, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = a_training(outlying, option=option)
    name = training.sites[0].name
    linear, given = outlying.linear(name), torch.randn(2, 8, outlying.linear(name).in_features)
    fmt = uniform_formats(outlying.card, 8)[name]
    seen = training.activations.round(given, training.activations.block(fmt))
    nearest = rtn(outlying.weight(name), fmt).dequantize()
    for share, weight in ((0.0, outlying.weight(name)), (1.0, nearest)):
        monkeypatch.setattr("qplan.folding.trained._SHARE", share)
        with training.rounded(0), torch.no_grad():
            found = linear(given)
        wanted = functional.linear(seen, weight, linear.bias)[..., : found.shape[-1]]
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_gradients_are_those_of_the_noise(outlying: LoadedModel) -> None:
    """Against differences of the loss with the parts of a step that numbers are rounded by held where they are."""
    training = a_training(outlying)
    training.begin(4)
    model = training.model
    batch = Batch(training.tokens[:4], model.exact(training.tokens[:4]))
    loss = model.add_gradients(batch)
    assert loss == pytest.approx(model.stats(batch).kl_nats, rel=1e-4)
    grads = [log.grad for log in training.logs.values()]
    assert all(grad is not None and torch.isfinite(grad).all() and grad.any() for grad in grads)
    # exact numbers have no noise: a common factor of a site's scales changes nothing, so its gradient is 0
    for grad in grads:
        assert grad is not None
        assert abs(float(grad.sum())) < 1e-3 * float(grad.abs().sum())


def test_training_begins_with_roots_of_root_mean_squares(outlying: LoadedModel) -> None:
    training = a_training(outlying)
    training.begin(4)
    for seen in gather_evidence(outlying, training.tokens[:4], training.sites):
        wanted = root_mean_square_scales(seen, 0.5)
        torch.testing.assert_close(training.scales[seen.site.name], wanted, rtol=2e-2, atol=0)


def test_the_folded_model_loses_less_on_rows_that_scales_were_not_trained_on(
    outlying: LoadedModel, tmp_path: Path
) -> None:
    training = a_training(outlying, tmp_path / "state")
    before = training.unfolded_loss()
    training.begin(4)
    begun = training.model.stats(Batch(training.tokens[ROWS:], training.model.exact(training.tokens[ROWS:]))).kl_nats
    found = training.run()
    assert found < 0.97 * begun < begun < before
    folded = fold(outlying, training.scales)
    held_out = tokens(7)
    losses = [
        joint_losses(model, held_out, {"": uniform_formats(model.card, 8)}, "low")[""].kl_nats
        for model in (outlying, folded)
    ]
    assert losses[1] < 0.5 * losses[0]


class _KilledError(Exception):
    pass


@pytest.mark.parametrize("after", [1, 5, 11])
def test_a_killed_training_goes_on_with_the_same_scales(
    outlying: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    whole = a_training(outlying)
    whole.begin(4)
    whole.run()
    done = [0]
    add = LossyModel.add_gradients

    def until_killed(self: LossyModel, batch: Batch) -> float:
        if done[0] == after:
            raise _KilledError
        done[0] += 1
        return add(self, batch)

    killed = a_training(outlying, tmp_path / "state")
    killed.begin(4)
    with monkeypatch.context() as patch:
        patch.setattr(LossyModel, "add_gradients", until_killed)
        with pytest.raises(_KilledError):
            killed.run()
    again = a_training(outlying, tmp_path / "state")
    again.begin(4)
    again.run()
    for name, wanted in whole.scales.items():
        assert torch.equal(again.scales[name], wanted)


def _calibrated(loaded: LoadedModel, fit_tokens: int = 4096) -> CalibrationSet:
    text = Text((words(9000, seed=1),), "words", None)
    limits = {"samples": 4, "seq_len": LENGTH, "seed": 0, "context": 128, "vocabulary": VOCABULARY}
    return tokenize(text, loaded.tokenizer, fit_tokens=fit_tokens, **limits)


def _run(
    folder: Path, loaded: LoadedModel, calibration: CalibrationSet, said: Sequence[str] | None = None
) -> tuple[LoadedModel, Note]:
    told = said if isinstance(said, list) else []
    return run_fold_training(
        RunFolder(folder),
        loaded,
        calibration,
        Int8Activations(),
        "low",
        say=told.append,
        progress=lambda *_: None,
    )


def test_a_run_keeps_the_folded_model_and_decides_once(outlying: LoadedModel, tmp_path: Path) -> None:
    calibration, run = _calibrated(outlying), RunFolder(tmp_path)
    folded, note = _run(tmp_path, outlying, calibration)
    record = FoldRecord.read(run.fold)
    assert note.code == "folded"
    assert folded.card.sha256 == record.folded_sha256 != outlying.card.sha256
    assert not run.fold_training.exists()
    made = run.fold.read_bytes()
    again, _ = _run(tmp_path, outlying, calibration)
    assert again.card.sha256 == folded.card.sha256
    assert run.fold.read_bytes() == made
    assert load_analyzed(run, folded.card, lambda _: None).original.card.sha256 == outlying.card.sha256
    other = replace(calibration, fit=calibration.fit[::-1].copy())
    with pytest.raises(StaleArtifactError, match="the text that rounding fits to"):
        _run(tmp_path, outlying, other)


def test_too_few_tokens_are_refused(outlying: LoadedModel, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--fit-tokens, or use --fold auto"):
        _run(tmp_path, outlying, _calibrated(outlying, 1024))


def test_a_model_whose_weights_stay_on_the_disk_is_not_trained(outlying: LoadedModel, tmp_path: Path) -> None:
    streamed = load_model(str(outlying.folder), stream=True)
    with pytest.raises(InputError, match="raise --max-memory, or use --fold auto"):
        _run(tmp_path, streamed, _calibrated(outlying))


@pytest.mark.parametrize("effort", ["quick", "thorough"])
def test_an_analysis_is_of_the_trained_model(
    outlying: LoadedModel, tmp_path: Path, capsys: pytest.CaptureFixture[str], effort: str
) -> None:
    text, run = tmp_path / "text.txt", tmp_path / "run"
    text.write_text(words(9000, seed=2), encoding="utf-8")
    command = ["analyze", str(outlying.folder), "--run", str(run), "--calib", str(text), "--effort", effort]
    command += ["--samples", "2", "--seq-len", "32", "--fit-tokens", "4096", "--formats", "int8", "--fold", "trained"]
    for _ in range(2):  # the second time, from what is there
        with pytest.raises(SystemExit) as ended:
            main(command)
        assert ended.value.code in (None, 0), capsys.readouterr()
    table = SensitivityTable.read(RunFolder(run).sensitivity)
    record = FoldRecord.read(RunFolder(run).fold)
    assert table.model.sha256 == record.folded_sha256
    assert record.original_sha256 == outlying.card.sha256
    assert [note.code for note in table.notes].count("folded") == 1


@pytest.mark.parametrize("more", [{"memory": "normal"}, {"dtype": "bfloat16", "mode": "gradient", "effort": "default"}])
def test_what_scales_cannot_be_trained_with_is_refused(more: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="--fold trained --"):
        AnalyzeOptions(model="model", fold="trained", **more)


def test_the_work_of_training_is_what_torch_counts(outlying: LoadedModel) -> None:
    training = a_training(outlying)
    training.begin(4)
    with FlopCounterMode(display=False) as counter:
        training.run()
    tokens_of = training.schedule.tokens
    asked = OnePassOptions(
        judged=256,
        fit=0,
        witnesses=0,
        seq_len=LENGTH,
        batch_size=4,
        formats=(),
        drawn=8,
        head_drawn=8,
        chosen=False,
        fold=False,
        training=tokens_of,
        training_steps=training.schedule.steps,
    )
    stage = OnePassCost(Shape.of(outlying.card, 0), asked, COUNTING).stages()[1]
    assert stage.name == f"training the fold, {tokens_of.passes(256):.1f} passes"
    assert stage.seconds == pytest.approx(counter.get_total_flops(), rel=0.1)
