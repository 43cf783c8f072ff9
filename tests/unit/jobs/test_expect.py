from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from qplan.cli.main import main
from qplan.cost.work import REFERENCE
from qplan.jobs import outlook as outlook_module
from qplan.jobs.expect import expect_analysis
from qplan.jobs.options import AnalyzeOptions
from qplan.run.folder import RunFolder


def test_a_short_job_is_expected_without_measuring_the_machine(
    model_folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outlook_module, "measure_machine", lambda _folder: pytest.fail("measured"))
    outlook = expect_analysis(AnalyzeOptions(model=str(model_folders["qwen2"]), effort="quick"), RunFolder(tmp_path))
    assert outlook is not None
    assert 0 < outlook.expected.seconds < outlook_module.LONG_S
    assert outlook.machine.memory_bytes > 0


def test_a_dry_run_prints_its_stages_and_writes_nothing(
    model_folders: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    machine = replace(REFERENCE, memory_bytes=10**10, disk_bytes=10**11)
    monkeypatch.setattr(outlook_module, "measure_machine", lambda _folder: machine)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(["analyze", str(model_folders["qwen2"]), "--effort", "quick", "--dry-run"])
    assert ended.value.code in (None, 0)
    assert "back: folds and losses" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_a_dry_run_on_a_machine_too_small_is_refused(
    model_folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    machine = replace(REFERENCE, memory_bytes=10**8, disk_bytes=10**11)
    monkeypatch.setattr(outlook_module, "measure_machine", lambda _folder: machine)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(["analyze", str(model_folders["qwen2"]), "--effort", "quick", "--dry-run"])
    assert ended.value.code == 2
    assert "this machine has free 0.1 GB: fewer --samples" in capsys.readouterr().err
