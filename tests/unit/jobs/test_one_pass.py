"""The quick analysis as a job: what it leaves for `emit`, and that a killed one goes on."""

from __future__ import annotations

import signal
from collections.abc import Callable
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from qplan.errors import InputError
from qplan.folding.analyzed import load_analyzed
from qplan.formats import INT4, INT8
from qplan.jobs.analyze import run_analyze
from qplan.jobs.options import FEWER_FIT_TOKENS, FIT_TOKENS, LARGE, AnalyzeOptions
from qplan.model.layerwise import run_layer
from qplan.model.load import LoadedModel
from qplan.model.source import sha256_beside_model
from qplan.rounding.moments import gather_moments
from qplan.rounding.run_rounder import run_rounder
from qplan.run.calibration import CalibrationSet
from qplan.run.fold import FoldRecord
from qplan.run.folder import RunFolder
from qplan.run.moments import write_matrix
from qplan.run.table import SensitivityTable
from qplan.scratch import remove_leftovers
from tests.support.ended_early import Ender, forked
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


def _bytes(run: RunFolder) -> dict[str, bytes]:
    """Everything that a run holds, but its journal, whose lines come in another order, and the time that it took."""
    found = {path.relative_to(run.folder).as_posix(): path for path in run.folder.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in found.items() if not name.startswith(("journal", "took"))}


def _killed(options: AnalyzeOptions, run: RunFolder, stage: str, calls: int) -> None:
    """Break an analysis off at the n-th word of progress in a stage."""
    told, seen = [""], list[str]()

    def stop(_done: int, _total: int) -> None:
        seen.extend([told[-1]] if stage in told[-1] else [])
        if len(seen) == calls:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_analyze(options, run, told.append, stop)
    assert not run.sensitivity.exists()


@pytest.mark.parametrize("model", ["llama", "qwen2"])  # an untied head, and a tied one
def test_a_killed_analysis_goes_on_and_ends_the_same(
    model: str, model_folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = _options(model_folders[model], tmp_path)
    _analyze(model_folders[model], tmp_path, RunFolder(tmp_path / "kept in memory"))
    # from here on the model is streamed
    monkeypatch.setattr("qplan.jobs.expect._fitting", lambda _shape, asked, _limit: replace(asked, streamed=True))
    whole, run = RunFolder(tmp_path / "whole"), RunFolder(tmp_path / "run")
    _analyze(model_folders[model], tmp_path, whole)
    layers: list[tuple[str, int]] = []

    def watched(loaded: LoadedModel, index: int, batch: Tensor, given: Any) -> Any:  # noqa: ANN401
        layers.append(("back" if torch.is_grad_enabled() else "there", index))
        return run_layer(loaded, index, batch, given)

    monkeypatch.setattr("qplan.model.layerwise.run_layer", watched)
    _killed(options, run, "forward through", 9)  # the second layer
    assert ("there", 1) in layers
    layers.clear()
    _killed(options, run, "backward through", 3)  # after the last layer
    assert ("there", 0) not in layers  # gone through once
    layers.clear()
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr("qplan.jobs.one_pass.write_matrix", _interrupted_at("fit"))
        _analyze(model_folders[model], tmp_path, run)
    assert ("there", 0) not in layers
    assert ("back", 2) not in layers
    layers.clear()
    _analyze(model_folders[model], tmp_path, run)
    assert ("back", 1) not in layers
    assert _bytes(run) == _bytes(whole)
    # and a model in memory has the same losses
    tables = [SensitivityTable.read(RunFolder(tmp_path / name).sensitivity) for name in ("kept in memory", "run")]
    assert tables[0].measurements == tables[1].measurements


KILLED_BEFORE = (
    ("os.rename", "rounding/between/*/.slopes-2.*"),
    ("os.remove", "rounding/.between.*/between/*/layer-*"),
    ("os.remove", "rounding/.original-*/original-*/model.layers.1.*"),
)
"""Files of a streamed analysis that is killed when they are written, and not yet under their names, or are removed."""


@pytest.mark.skipif(torch.cuda.is_available(), reason="torch has threads for GPUs, which a forked process lacks")
def test_a_streamed_analysis_that_is_killed_again_and_again_ends_in_the_same_bytes(
    model_folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qplan.jobs.expect._fitting", lambda _shape, asked, _limit: replace(asked, streamed=True))
    options = replace(
        _options(model_folders["qwen2"], tmp_path), samples=2, seq_len=32, fit_tokens=128, formats=(INT8,)
    )
    whole, run = RunFolder(tmp_path / "whole"), RunFolder(tmp_path / "run")

    def analyze(into: RunFolder) -> None:
        torch.set_num_threads(1)
        run_analyze(options, into, print, lambda _done, _total: None)

    assert forked(lambda: analyze(whole), tmp_path / "told.txt") == 0
    for place in KILLED_BEFORE:

        def killed(event: str, path: Path, place: tuple[str, str] = place) -> signal.Signals | None:
            return signal.SIGKILL if event == place[0] and fnmatch(str(path), place[1]) else None

        code = forked(lambda: analyze(run), tmp_path / "told.txt", Ender(run.folder, killed))
        assert code == -signal.SIGKILL, (place, (tmp_path / "told.txt").read_text())
        assert list(run.folder.glob(place[1]))
        remove_leftovers(run.folder, deep=True)  # as the command does
    assert forked(lambda: analyze(run), tmp_path / "told.txt") == 0
    assert _bytes(run) == _bytes(whole)


def _interrupted_at(part: str) -> Callable[..., None]:
    def write(folder: Path, key: str, matrix: Any) -> None:  # noqa: ANN401
        if folder.name.startswith(part):
            raise KeyboardInterrupt
        write_matrix(folder, key, matrix)

    return write


def test_an_effort_chooses_the_mode() -> None:
    with pytest.raises(InputError, match="--effort quick --mode measured: an effort chooses the mode"):
        AnalyzeOptions(model="m", effort="quick", mode="measured")


def test_rounding_of_a_large_model_is_fitted_to_fewer_tokens() -> None:
    assert AnalyzeOptions(model="m", effort="quick").most_fit_tokens(LARGE) == FEWER_FIT_TOKENS
    assert AnalyzeOptions(model="m").most_fit_tokens(LARGE) == FEWER_FIT_TOKENS
    assert AnalyzeOptions(model="m").most_fit_tokens(LARGE - 1) == FIT_TOKENS
    assert AnalyzeOptions(model="m", effort="thorough").most_fit_tokens(LARGE) == FIT_TOKENS
    assert AnalyzeOptions(model="m", mode="auto").most_fit_tokens(LARGE) == FIT_TOKENS
    assert AnalyzeOptions(model="m", effort="quick", fit_tokens=100).most_fit_tokens(LARGE) == 100
