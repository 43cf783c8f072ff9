"""The model of a run, found again from any folder, or named."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from qplan.errors import DamagedArtifactError, InputError
from qplan.folding.analyzed import load_analyzed
from qplan.model.load import LoadedModel
from qplan.run.fold import FoldRecord
from qplan.run.folder import RunFolder


def quiet(_: str) -> None:
    """Say nothing."""


def test_a_run_is_used_from_another_folder(qwen2: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert Path(qwen2.card.source).is_absolute()
    found = load_analyzed(RunFolder(tmp_path / "run"), qwen2.card, quiet)
    assert found.loaded.card == qwen2.card


def test_a_model_that_was_moved_is_named_with_its_run(qwen2: LoadedModel, tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "my run")
    moved = replace(qwen2.card, source=str(tmp_path / "model"))
    with pytest.raises(InputError, match=r"my run was made from the model in .*, which is not .* --run '.*my run'"):
        load_analyzed(run, moved, quiet)


def test_a_relative_path_of_an_older_version_is_named_with_its_run(qwen2: LoadedModel, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"run was made from \./model: .*run this where 'qplan analyze' ran"):
        load_analyzed(RunFolder(tmp_path / "run"), replace(qwen2.card, source="./model"), quiet)


def test_a_folded_model_that_is_not_whole_is_named_as_qplans_own(qwen2: LoadedModel, tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    shutil.copytree(qwen2.folder, run.folded)
    folded = replace(qwen2.card, sha256="1" * 64)
    gone = r"fold\.json, which tells how .*folded was made, is gone; run the same 'qplan analyze' again"
    with pytest.raises(DamagedArtifactError, match=gone):
        load_analyzed(run, folded, quiet)
    record = FoldRecord(qwen2.card.source, qwen2.card.sha256, folded.sha256, "low", {"original": {}, "folded": {}})
    record.write(run.fold, {})
    for name in ("tokenizer.json", "model.safetensors", "config.json"):
        (run.folded / name).unlink()
        with pytest.raises(DamagedArtifactError, match=r"folded, the folded model, is not as .* --restart \("):
            load_analyzed(run, folded, quiet)
