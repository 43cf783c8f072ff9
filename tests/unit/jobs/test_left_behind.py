"""What a killed pass left may be gone in part: with the machine's power, or because somebody removed it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from qplan.errors import StaleArtifactError
from qplan.formats import INT8
from qplan.jobs.analyze import run_analyze
from qplan.jobs.options import AnalyzeOptions
from qplan.run.folder import RunFolder
from qplan.run.table import SensitivityTable
from tests.support.tiny_models import words


def _lose_lines(run: RunFolder) -> None:
    lines = run.journal.read_bytes().splitlines(keepends=True)
    run.journal.write_bytes(b"".join(lines[:-3]))


def _lose_decisions(run: RunFolder) -> None:
    run.fold_draft.unlink()


def _lose_a_layer(run: RunFolder) -> None:
    (file,) = run.between.rglob("layer-0-0.safetensors")
    file.unlink()


_AFTER_A_LAYER = 3
"""Words of progress on the way back until the layer behind the head is done."""


Left = tuple[AnalyzeOptions, RunFolder, SensitivityTable]


@pytest.fixture(scope="module")
def left(tmp_path_factory: pytest.TempPathFactory, model_folders: dict[str, Path]) -> Left:
    """Options, a run that was killed after a layer on the way back, and the table of one that was not."""
    base = tmp_path_factory.mktemp("left")
    (base / "text.txt").write_text(words(1500, seed=1))
    options = AnalyzeOptions(
        model=str(model_folders["llama"]),
        calib=str(base / "text.txt"),
        effort="quick",
        samples=2,
        seq_len=64,
        fit_tokens=128,
        formats=(INT8,),
        rounding="rtn",
    )
    table = run_analyze(options, RunFolder(base / "whole"), lambda _: None, lambda *_: None)
    killed, told, seen = RunFolder(base / "killed"), [""], list[str]()

    def stop(_done: int, _total: int) -> None:
        seen.extend(["back"] if "backward through" in told[-1] else [])
        if len(seen) == _AFTER_A_LAYER:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_analyze(options, killed, told.append, stop)
    assert list(killed.between.rglob("slopes-*"))
    return options, killed, table


@pytest.mark.parametrize("lose", [_lose_lines, _lose_decisions, _lose_a_layer])
def test_what_is_lost_is_found_again(lose: Callable[[RunFolder], None], left: Left, tmp_path: Path) -> None:
    options, killed, expected = left
    run = RunFolder(tmp_path / "run")
    shutil.copytree(killed.folder, run.folder)
    lose(run)
    table = run_analyze(options, run, lambda _: None, lambda *_: None)
    assert table.measurements == expected.measurements
    assert table.model == expected.model
    assert not run.between.exists()


@pytest.mark.parametrize(
    ("change", "told"), [({"fold": "off"}, "fold was auto, now off"), ({"fit_tokens": 256}, "scales fitted to was")]
)
def test_losses_of_other_folds_are_not_taken_over(
    change: dict[str, Any], told: str, left: Left, tmp_path: Path
) -> None:
    options, killed, _ = left
    run = RunFolder(tmp_path / "run")
    shutil.copytree(killed.folder, run.folder)
    with pytest.raises(StaleArtifactError, match=told):
        run_analyze(replace(options, **change), run, lambda _: None, lambda *_: None)
