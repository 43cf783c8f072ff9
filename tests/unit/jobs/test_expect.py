from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from qplan.cli.main import main
from qplan.cost import free as free_module
from qplan.cost.work import REFERENCE
from qplan.errors import InputError, StaleArtifactError, StorageError
from qplan.jobs import outlook as outlook_module
from qplan.jobs.expect import expect_analysis, held_by
from qplan.jobs.options import AnalyzeOptions
from qplan.run.folder import RunFolder
from qplan.run.journal import Journal


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
        main(["analyze", str(model_folders["qwen2"]), "--effort", "quick", "--seq-len", "64", "--dry-run"])
    assert ended.value.code in (None, 0)
    assert "backward through all layers" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_a_dry_run_on_a_machine_too_small_is_refused(
    model_folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    machine = replace(REFERENCE, memory_bytes=10**8, disk_bytes=10**11)
    monkeypatch.setattr(outlook_module, "measure_machine", lambda _folder: machine)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(["analyze", str(model_folders["qwen2"]), "--effort", "quick", "--seq-len", "64", "--dry-run"])
    assert ended.value.code == 2
    assert "this machine has free 0.1 GB: fewer --samples" in capsys.readouterr().err


def test_a_run_goes_on_with_the_sequences_per_pass_that_it_began_with(
    model_folders: dict[str, Path], tmp_path: Path
) -> None:
    run, options = RunFolder(tmp_path), AnalyzeOptions(model=str(model_folders["qwen2"]), effort="quick")
    fingerprint = {"batch_size": 3, "formats": [fmt.name for fmt in options.formats], "memory": "low", "samples": 16}
    fingerprint |= {"dynamic option": 0, "rounding": "auto", "output features drawn": 64, "fold": "auto", "model": "x"}
    Journal(run.journal, fingerprint).__exit__(None, None, None)
    expected = {}
    asked = {"on": options, "anew": replace(options, restart=True)}
    for name, given in asked.items():
        outlook = expect_analysis(given, run)
        assert outlook is not None
        expected[name] = outlook.asked.batch_size
    assert expected == {"on": 3, "anew": 4}
    with pytest.raises(
        StaleArtifactError, match=r"another run: fold was auto, now off; batch_size was 3, now 2\. To go"
    ):
        expect_analysis(replace(options, batch_size=2, fold="off"), run)
    # whatever is free now
    short = expect_analysis(replace(options, max_memory_bytes=10**6), run)
    assert short is not None
    assert (short.asked.streamed, short.asked.batch_size) == (True, 3)
    told = r"allows 1\.0 MB: raise it, or fewer .*, or --restart with a --batch-size below this run's 3$"
    with pytest.raises(InputError, match=told):
        short.check()


def test_what_a_run_wrote_already_needs_no_room_again(
    model_folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, options = RunFolder(tmp_path), AnalyzeOptions(model=str(model_folders["qwen2"]), effort="quick")
    monkeypatch.setattr(outlook_module, "free_bytes", lambda folder: 1000 if folder == run.folder else 10**12)
    outlook = expect_analysis(options, run)
    assert outlook is not None
    with pytest.raises(StorageError, match=r"has 1\.0 kB free"):
        outlook.check()
    run.rounding.mkdir(parents=True)
    (run.rounding / "moments").write_bytes(bytes(int(outlook.expected.disk_bytes)))
    again = expect_analysis(options, run)
    assert again is not None
    again.check()


def test_files_that_a_running_analysis_removes_are_not_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "kept").write_bytes(bytes(5))
    monkeypatch.setattr(Path, "rglob", lambda folder, _pattern: iter([folder / "removed", folder / "kept", folder]))
    assert held_by(tmp_path) == 5


def test_a_limit_above_what_is_free_leaves_the_model_on_the_disk(
    model_folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = AnalyzeOptions(model=str(model_folders["qwen2"]), effort="quick", max_memory_bytes=10**15)
    monkeypatch.setattr(free_module, "free_memory", lambda: 10**6)
    monkeypatch.setattr(outlook_module, "free_memory", lambda: 10**6)
    outlook = expect_analysis(options, RunFolder(tmp_path))
    assert outlook is not None
    assert outlook.asked.streamed
    with pytest.raises(InputError, match=r"this machine has free 1\.0 MB: .*, or a machine with more memory$"):
        outlook.check()
