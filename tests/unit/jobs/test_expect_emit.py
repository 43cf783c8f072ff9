"""What an emit is expected to take, from a run's files alone."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from qplan.artifact import write_json
from qplan.choosing.request import PlanRequest
from qplan.cli.main import main
from qplan.cost.emit import EXPORTING, GATE, REPAIRING, TRAINING
from qplan.cost.work import REFERENCE, Machine
from qplan.errors import DamagedArtifactError, InputError
from qplan.formats import INT4, INT8
from qplan.jobs import expect_emit as expect_module
from qplan.jobs import outlook as outlook_module
from qplan.jobs.emit import emission_of
from qplan.jobs.expect_emit import expect_emit
from qplan.jobs.options import EmitOptions
from qplan.mnn.build.exporter_source import find_exporter
from qplan.model.load import LoadedModel
from qplan.planner.budget import parse_budgets
from qplan.run.baselines import KIND, SCHEMA, baseline_path
from qplan.run.calibration import CalibrationSet
from qplan.run.fold import FoldRecord
from qplan.run.folder import RunFolder
from qplan.tuning.schedule import Schedule
from qplan.verify.measure import Trial
from qplan.verify.prove import baseline_inputs
from tests.support.whole_tables import estimated_table


@pytest.fixture(scope="module")
def run(qwen2: LoadedModel, calibration: CalibrationSet, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A finished analysis of a tiny model."""
    home = RunFolder(tmp_path_factory.mktemp("run"))
    estimated_table(qwen2, calibration, (INT8, INT4)).write(home.sensitivity)
    calibration.write(home.calibration)
    return home


def _machine(monkeypatch: pytest.MonkeyPatch, machine: Machine) -> None:
    monkeypatch.setattr(outlook_module, "measure_machine", lambda _folder: machine)
    monkeypatch.setattr(outlook_module, "free_memory", lambda: machine.memory_bytes)


def _options(**more: object) -> EmitOptions:
    wanted = PlanRequest(budgets=parse_budgets(["int4"]))
    return EmitOptions(wanted=wanted, tokens=32, **more)  # type: ignore[arg-type]


def test_nothing_is_measured_for_a_short_emit(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outlook_module, "measure_machine", lambda _folder: pytest.fail("measured"))
    expected = expect_emit(emission_of(_options(), run)).expected
    names = [stage.name for stage in expected.stages]
    assert names.index(EXPORTING) < names.index(GATE) < names.index(REPAIRING)
    without = expect_emit(emission_of(_options(build=False, evaluations=0), run)).expected
    assert without.seconds < expected.seconds
    assert without.memory_bytes <= expected.memory_bytes


def test_uniform_models_that_were_measured_are_not_measured_again(run: RunFolder, calibration: CalibrationSet) -> None:
    options = _options()
    emission = emission_of(options, run)
    assert emission.uniform == (16, 8, 4)
    settings = Trial.settings_of((emission.judged_rows, calibration.seq_len), (1, emission.decode_rows, 128, 32, 5))
    exporter = find_exporter(None).version
    inputs = baseline_inputs(emission.table.model.sha256, calibration.heldout_sha256, exporter, settings)
    path = baseline_path(run.baselines, "int8")
    write_json(path, KIND, SCHEMA, inputs, {"model": {}})
    before = expect_emit(emission_of(replace(options, threads=2), run)).expected
    assert emission_of(options, run).uniform == (16, 4)
    assert expect_emit(emission).expected.seconds < before.seconds
    path.write_text("{", encoding="utf-8")
    assert emission_of(options, run).uniform == (16, 8, 4)
    path.unlink()


def test_a_dry_run_prints_its_stages_and_writes_nothing(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _machine(monkeypatch, replace(REFERENCE, memory_bytes=10**10, disk_bytes=10**11))
    before = sorted(run.folder.rglob("*"))
    with pytest.raises(SystemExit) as ended:
        main(["emit", "--run", str(run.folder), "--budget", "int4", "--tokens", "32", "--dry-run"])
    assert ended.value.code in (None, 0)
    assert GATE in capsys.readouterr().out
    assert sorted(run.folder.rglob("*")) == before


@pytest.mark.parametrize(
    ("more", "machine", "said"),
    [
        ([], {"memory_bytes": 10**8}, "this machine has free 0.1 GB: --max-memory, which reads"),
        (["--max-memory", "400MB"], {}, "--max-memory allows 0.4 GB: raise it, or use --no-build"),
        (["--max-memory", "400MB", "--no-build", "--repair", "0"], {}, "--max-memory allows 0.4 GB: raise it\n"),
        (["--max-memory", "1TB"], {"memory_bytes": 10**8}, "this machine has free 0.1 GB: use --no-build"),
        ([], {"disk_bytes": 10**4}, "on the disk, which has 10.0 kB free"),
    ],
)
def test_an_emit_that_cannot_be_is_refused_before_it_begins(
    run: RunFolder,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    *,
    more: list[str],
    machine: dict[str, int],
    said: str,
) -> None:
    _machine(monkeypatch, replace(REFERENCE, **({"memory_bytes": 10**10, "disk_bytes": 10**11} | machine)))
    with pytest.raises(SystemExit) as ended:
        main(["emit", "--run", str(run.folder), "--budget", "int4", "--tokens", "32", "--dry-run", *more])
    assert ended.value.code not in (None, 0, 1)
    assert said in capsys.readouterr().err


def test_a_model_that_is_not_whole_any_more_is_refused_by_name(
    qwen2: LoadedModel, run: RunFolder, tmp_path: Path
) -> None:
    again = RunFolder(tmp_path / "run")
    shutil.copytree(run.folder, again.folder)
    model = tmp_path / "model"
    shutil.copytree(qwen2.folder, model)
    shutil.copytree(qwen2.folder, again.folded)
    record = FoldRecord(str(model), "1" * 64, qwen2.card.sha256, "low", {"original": {}, "folded": {}})
    record.write(again.fold, {})
    expect_emit(emission_of(_options(), again))
    (model / "tokenizer.json").unlink()
    with pytest.raises(InputError, match=r"^\S*/model has no usable tokenizer"):
        expect_emit(emission_of(_options(), again))
    (again.folded / "config.json").unlink()
    with pytest.raises(DamagedArtifactError, match=r"^\S*/folded, the folded model, is not as qplan wrote it"):
        expect_emit(emission_of(_options(), again))


def test_scales_are_trained_where_the_machine_and_the_text_suffice(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = emission_of(_options(), run)
    tuned = replace(plain, table=replace(plain.table, conditions=replace(plain.table.conditions, rounding="gptq")))
    asked = replace(tuned, options=replace(plain.options, tune="scales"))
    assert "windows of calibration text" in replace(tuned).untrained
    assert tuned.training is None
    assert not asked.untrained
    assert asked.training is not None
    every = tuned.calibration
    one = replace(asked, calibration=replace(every, tokens=every.tokens[:1]))
    with pytest.raises(InputError, match=r"^--tune scales: with 1 calibration window none is left .*more --samples"):
        _ = one.untrained
    full = replace(asked, options=replace(plain.options, tune="full"))
    few = replace(full, calibration=replace(every, fit=every.fit[:1].repeat(32, 0)))
    with pytest.raises(InputError, match=r"^--tune full: layers are trained on 33 windows .* there are 32; .*--fit-t"):
        _ = few.untrained
    assert not replace(full, calibration=replace(every, fit=every.fit[:1].repeat(33, 0))).untrained
    monkeypatch.setattr(Schedule, "is_worth_it", True)
    enough = replace(tuned)
    assert enough.training is not None
    assert not enough.untrained
    stages = [stage.name for stage in expect_emit(enough).expected.stages]
    assert any(name.startswith(TRAINING) and name.endswith("passes") for name in stages)
    monkeypatch.setattr(expect_module, "free_memory", lambda: 10**8)
    assert "of memory" in replace(tuned).untrained
    monkeypatch.setattr(type(tuned), "streamed", True)
    assert "stay on the disk" in replace(tuned).untrained
    with pytest.raises(InputError, match=r"^--tune scales: .*raise --max-memory, or leave it out"):
        _ = replace(asked).untrained


def test_the_model_before_folding_stays_on_the_disk_where_both_are_too_large(
    qwen2: LoadedModel, run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    again = RunFolder(tmp_path / "run")
    shutil.copytree(run.folder, again.folder)
    shutil.copytree(qwen2.folder, again.folded)
    record = FoldRecord(str(qwen2.folder), "1" * 64, qwen2.card.sha256, "low", {"original": {}, "folded": {}})
    record.write(again.fold, {})

    def expected(free: float) -> tuple[int, float]:
        monkeypatch.setattr(expect_module, "free_memory", lambda: free)
        emission = emission_of(_options(), again)
        return emission.held, max(stage.memory_bytes for stage in expect_emit(emission).expected.stages)

    both, most = expected(1e12)
    one, less = expected(most - 1)
    assert (both, one) == (2, 1)
    assert less == pytest.approx(most - 4 * qwen2.card.parameters)
    assert expected(most) == (2, most)
