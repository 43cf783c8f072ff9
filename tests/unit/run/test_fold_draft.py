"""A fold that was interrupted goes on: what was found is not found again, and the decision is the same."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from qplan.calibration import Text, tokenize
from qplan.folding import decide as folding
from qplan.folding.decide import run_fold
from qplan.folding.evidence import Evidence
from qplan.folding.fold import fold_sites
from qplan.model.load import LoadedModel
from qplan.run.calibration import CalibrationSet
from qplan.run.fold import FoldRecord
from qplan.run.fold_draft import FoldDraft
from qplan.run.folder import RunFolder
from qplan.sensitivity.joint import joint_losses
from tests.support.tiny_models import VOCABULARY, words


@pytest.fixture(scope="module")
def tokens(qwen2: LoadedModel) -> CalibrationSet:
    text = Text((words(600, seed=1),), "words", None)
    limits = {"samples": 2, "seq_len": 16, "seed": 0, "context": 128, "vocabulary": VOCABULARY, "fit_tokens": 64}
    return tokenize(text, qwen2.tokenizer, **limits)


def decide(run: RunFolder, loaded: LoadedModel, tokens: CalibrationSet) -> list[str]:
    """Fold, and return what was said."""
    said: list[str] = []
    run_fold(
        run,
        loaded,
        tokens,
        "low",
        dynamic_option=0,
        rounding="rtn",
        batch_size=2,
        jobs=1,
        device="cpu",
        say=said.append,
        progress=lambda *_: None,
    )
    return said


def halves(found: Evidence, *_: object) -> Tensor:
    """Scales that need no search; the fit has its own tests."""
    return torch.linspace(0.5, 1, found.site.channels)


class Counted:
    """Calls a function, and interrupts like Ctrl-C before its n-th call."""

    def __init__(self, function: Callable[..., Any], stop: int) -> None:
        self.function, self.stop, self.calls = function, stop, 0

    def __call__(self, *args: Any, **options: Any) -> Any:
        self.calls += 1
        if self.calls == self.stop:
            raise KeyboardInterrupt
        return self.function(*args, **options)


def test_an_interrupted_fold_goes_on_where_it_was(
    qwen2: LoadedModel, tokens: CalibrationSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, run = RunFolder(tmp_path / "whole"), RunFolder(tmp_path / "run")
    monkeypatch.setattr(folding, "fit_scales", halves)
    decide(whole, qwen2, tokens)
    assert not whole.fold_draft.exists()
    sites, never = len(fold_sites(qwen2)), 10**6
    counts = []
    for stop_fit, stop_losses in ((3, never), (never, 2), (never, 3), (never, never)):
        counted = Counted(halves, stop_fit), Counted(joint_losses, stop_losses)
        monkeypatch.setattr(folding, "fit_scales", counted[0])
        monkeypatch.setattr(folding, "joint_losses", counted[1])
        monkeypatch.setattr("qplan.run.fold_draft._WRITE_S", 0.0)
        if stop_fit == stop_losses == never:
            said = decide(run, qwen2, tokens)
            assert any(f"going on from {sites} places' scales and 6 losses" in line for line in said)
        else:
            with pytest.raises(KeyboardInterrupt):
                decide(run, qwen2, tokens)
        counts.append((counted[0].calls, counted[1].calls))
    assert counts == [(3, 0), (sites - 2, 2), (0, 3), (0, 1)]
    assert FoldRecord.read(run.fold) == FoldRecord.read(whole.fold)
    assert not run.fold_draft.exists()


def test_a_damaged_draft_is_made_again_and_told(tmp_path: Path) -> None:
    path = tmp_path / "fold.draft.json"
    said: list[str] = []
    draft = FoldDraft(path, {"model": "a"})
    draft.add_scale("mlp", [0.5, 2.0])
    draft.add_losses("original", {"int8, memory low": 0.25}, tmp_path / "tensors-1")
    again = FoldDraft.open(path, {"model": "a"}, said.append)
    assert (again.scales, again.losses, again.rounded) == (draft.scales, draft.losses, {"original": "tensors-1"})
    assert not FoldDraft.open(path, {"model": "b"}, said.append).scales
    assert not said
    sound = path.read_text()
    for damaged in (sound.replace("0.25", "0.35"), sound[:-20], "[]", sound.replace('"rounded"', '"routed"')):
        path.write_text(damaged)
        assert not FoldDraft.open(path, {"model": "a"}, said.append).losses
    assert len(said) == 4
