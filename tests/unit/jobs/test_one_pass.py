"""The quick analysis as a job: what it leaves for `emit`, and that a killed one goes on."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from qplan.errors import InputError
from qplan.folding.analyzed import load_analyzed
from qplan.formats import INT4, INT8
from qplan.jobs.analyze import run_analyze
from qplan.jobs.options import FIT_TOKENS, QUICK_FIT_TOKENS, AnalyzeOptions
from qplan.model.source import sha256_beside_model
from qplan.quantize.moments import gather_moments
from qplan.quantize.run_rounder import run_rounder
from qplan.run.calibration import CalibrationSet
from qplan.run.fold import FoldRecord
from qplan.run.folder import RunFolder
from qplan.run.table import SensitivityTable
from tests.support.tiny_models import words


def _options(model: Path, folder: Path) -> AnalyzeOptions:
    text = folder / "text.txt"
    if not text.is_file():
        text.write_text(words(3000, seed=1))
    return AnalyzeOptions(
        model=str(model),
        calib=str(text),
        effort="quick",
        samples=6,
        seq_len=64,
        batch_size=4,
        fit_tokens=768,
        formats=(INT8, INT4),
    )


def _analyze(model: Path, folder: Path, run: RunFolder, said: list[str] | None = None) -> SensitivityTable:
    tell = (lambda _line: None) if said is None else said.append
    return run_analyze(_options(model, folder), run, tell, lambda _done, _total: None)


def test_emit_finds_the_moments_of_the_model_that_was_analyzed(model_folders: dict[str, Path], tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    table = _analyze(model_folders["qwen2"], tmp_path, run)
    assert SensitivityTable.read(run.sensitivity).sha256 == table.sha256
    record = FoldRecord.read(run.fold)
    assert record.folded_sha256 == table.model.sha256
    assert record.tokenizer_sha256 == sha256_beside_model(run.folded)
    calibration = CalibrationSet.read(run.calibration)
    folded = load_analyzed(run, table.model, lambda _: None).loaded
    kept = {path: path.stat().st_mtime_ns for path in run.rounding.rglob("*.safetensors")}
    rounder = run_rounder(run, folded, calibration, "auto")
    # nothing was gathered again
    assert {path: path.stat().st_mtime_ns for path in run.rounding.rglob("*.safetensors")} == kept
    assert rounder.moments is not None
    assert rounder.judge is not None
    fit = gather_moments(folded, torch.from_numpy(calibration.fit), tmp_path / "fit", inputs={})
    judge = gather_moments(folded, torch.from_numpy(calibration.tokens), tmp_path / "judge", inputs={})
    head = folded.card.tensors[-1].name
    for ours, theirs in ((rounder.moments, fit), (rounder.judge, judge)):
        assert ours.key_of == theirs.key_of
        assert ours.tokens == theirs.tokens
        for spec in folded.card.tensors:
            mine, other = ours.of(spec.name), theirs.of(spec.name)
            if spec.name == head:  # labels are drawn by other seeds, so that a tied head's lookups differ
                assert float(mine.trace() / other.trace()) == pytest.approx(1, abs=0.1)
            else:
                assert float((mine - other).norm() / other.norm()) < 1e-3, spec.name


def test_a_killed_analysis_goes_on_and_ends_the_same(
    model_folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = _analyze(model_folders["llama"], tmp_path, RunFolder(tmp_path / "whole"))
    run, told, back = RunFolder(tmp_path / "run"), [""], list[int]()

    def stop(done: int, _total: int) -> None:
        back.extend([done] if "back:" in told[-1] else [])
        if len(back) == 2:  # the head and a layer
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_analyze(_options(model_folders["llama"], tmp_path), run, told.append, stop)
    assert not run.sensitivity.exists()
    assert any(run.rounding.glob("original-*/index.json"))
    monkeypatch.setattr("qplan.jobs.one_pass.gather_on_the_way", lambda *_, **__: pytest.fail("gathered once"))
    again = _analyze(model_folders["llama"], tmp_path, run)
    assert again.measurements == whole.measurements
    assert again.model == whole.model
    assert not run.fold_draft.exists()


def test_an_effort_chooses_the_mode() -> None:
    with pytest.raises(InputError, match="--effort quick --mode measured: an effort chooses the mode"):
        AnalyzeOptions(model="m", effort="quick", mode="measured")
    assert AnalyzeOptions(model="m", effort="quick").most_fit_tokens == QUICK_FIT_TOKENS
    assert AnalyzeOptions(model="m").most_fit_tokens == QUICK_FIT_TOKENS
    assert AnalyzeOptions(model="m", effort="thorough").most_fit_tokens == FIT_TOKENS
    assert AnalyzeOptions(model="m", mode="auto").most_fit_tokens == FIT_TOKENS
    assert AnalyzeOptions(model="m", effort="quick", fit_tokens=100).most_fit_tokens == 100
