"""From a plan to its losses, rules and engine, also where that reads other models than the installed one."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from qplan.artifact import sha256_file
from qplan.choosing.measured import measured_models, plans_of
from qplan.choosing.planned import edited_plan, planned_on
from qplan.choosing.retarget import retarget_rules, retarget_table
from qplan.cli.main import main
from qplan.cost.file_bytes import estimate_fixed
from qplan.errors import InputError, StaleArtifactError
from qplan.explore import open_run
from qplan.formats import QuantFormat
from qplan.jobs.frontier import run_frontier
from qplan.jobs.report import run_report
from qplan.mnn.engines import EngineTarget, EngineVersion
from qplan.planner.budget import Budget
from qplan.planner.planning import make_plan
from qplan.planner.rules import Rules
from qplan.report.words import Language
from qplan.run.folder import RunFolder
from qplan.run.plan import Plan
from qplan.run.plans import find_plan
from qplan.run.table import SensitivityTable
from qplan.run.verification import Verification
from tests.support.invented_run import make_run, verification_of

OLD = EngineTarget.of(EngineVersion(3, 5, 0))
NEW = EngineTarget.of(EngineVersion(3, 6, 1))


@pytest.fixture
def table() -> SensitivityTable:
    return make_run(2, hidden=64).table


@pytest.fixture
def run(table: SensitivityTable, tmp_path: Path) -> RunFolder:
    """A run with a built plan for the installed engine and one for 3.5.0, whose folder does not say so."""
    run = RunFolder(tmp_path / "runs" / "tiny")
    table.write(run.sensitivity)
    plans = {"int8": solved(table), "for-the-app": replace(solved(retarget_table(table, OLD), OLD), engine="3.5.0")}
    for name, plan in plans.items():
        plan.write(run.budget(name) / "plan.json")
        prove(run, name, plan)
    return run


def solved(table: SensitivityTable, target: EngineTarget = NEW) -> Plan:
    return make_plan(table, Budget.parse("int8"), estimate_fixed(table.model), rules=retarget_rules(Rules(), target))


def prove(run: RunFolder, name: str, plan: Plan) -> None:
    written = run.budget(name) / "plan.json"
    verification = replace(verification_of(plan), plan_sha256=sha256_file(written))
    verification.write(written.with_name("verification.json"))


def as_older(path: Path, folder: Path) -> Path:
    """The plan as a qplan without engines in plans wrote it, in a folder of the run."""
    document: dict[str, Any] = json.loads(path.read_text())
    del document["engine"]
    folder.mkdir()
    older = folder / "plan.json"
    older.write_text(json.dumps(document | {"schema": 2}, indent=1))
    return older


def qplan(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: str) -> str:
    monkeypatch.setattr(sys, "argv", ["qplan", *arguments])
    with pytest.raises(SystemExit) as end:
        main()
    assert not end.value.code, capsys.readouterr().err
    return capsys.readouterr().out


def test_a_plan_for_another_engine_is_explained_compared_and_reported(
    run: RunFolder, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    where = ("--run", str(run.folder))
    assert "int8-s32" in qplan(capsys, monkeypatch, "explain", "for-the-app", *where)
    assert "◀ planned" in qplan(capsys, monkeypatch, "explain", "for-the-app", "1.mlp.down_proj", *where)
    changed = qplan(capsys, monkeypatch, "plan", "diff", "int8", "for-the-app", *where)
    assert "tensors changed" in changed
    assert "different analyses" not in changed
    assert "report.html" in qplan(capsys, monkeypatch, "report", "for-the-app", *where)
    assert "int8-s32" in (run.budget("for-the-app") / "report.md").read_text()


def test_a_notebook_opens_it_with_what_was_measured(run: RunFolder) -> None:
    opened = open_run(run.folder)
    view = opened.plan("for-the-app")
    assert view.plan.engine == "3.5.0"
    assert view.verification is not None
    assert set(opened.built) == {"int8", "for-the-app"}
    assert view.explain("1.mlp.down_proj").frame["format"].str.endswith(("-s32", "fp16")).all()
    assert not view.diff(opened.plan("int8")).empty
    assert len(view.frame) == len(view.plan.tensors)


def test_measurements_for_several_engines_stand_side_by_side(run: RunFolder, table: SensitivityTable) -> None:
    names = {model.name: model for model in measured_models(run, table)}
    assert {"plan int8", "plan for-the-app", "int8", "int8-mnn-3.5.0"} <= set(names)
    assert names["int8-mnn-3.5.0"].total_bytes > names["int8"].total_bytes
    assert {model.name for model in run_frontier(run, Rules(), 3).measured} == set(names)
    stale = replace(table, reference_nll_nats=9.0)
    assert not list(plans_of(run, stale))


@pytest.mark.parametrize("name", ["int8-mnn-3.5.0", "60pct-mnn-3.5.0"])
def test_a_plan_from_before_engines_were_recorded_has_it_from_its_folder(run: RunFolder, name: str) -> None:
    written = run.budget("for-the-app") / "plan.json"
    older = as_older(written, run.folder / name)
    assert Plan.read(older) == Plan.read(written)
    assert planned_on(find_plan(str(older))).engine == OLD
    renamed = as_older(written, run.folder / "renamed")
    with pytest.raises(StaleArtifactError, match="other losses"):
        planned_on(find_plan(str(renamed)))


def test_the_folders_name_means_nothing_for_a_plan_that_records_its_engine(run: RunFolder) -> None:
    misleading = run.folder / "int8-mnn-3.5.0"
    shutil.copytree(run.budget("int8"), misleading)
    assert planned_on(find_plan(str(misleading))).engine is None
    assert run_report(str(misleading), run, Language.en, print).page.is_file()


def test_losses_for_an_engine_have_the_hash_that_plans_of_before_recorded(table: SensitivityTable) -> None:
    wide = retarget_table(table, OLD)
    assert str(wide.notes[-1]) == "scales have 32 bits: engine 3.5.0 reads no others"
    assert wide.sha256 == replace(wide, notes=(*table.notes, wide.notes[-1])).sha256 != table.sha256


def test_an_engine_that_is_none_is_named_with_its_line(run: RunFolder) -> None:
    path = run.budget("for-the-app") / "plan.json"
    path.write_text(path.read_text().replace('"engine": "3.5.0"', '"engine": "soon"'))
    line = 1 + next(i for i, text in enumerate(path.read_text().splitlines()) if '"engine": "soon"' in text)
    with pytest.raises(InputError, match=rf"plan.json, line {line}, engine: 'soon' is not a version of MNN"):
        find_plan(str(path))


@pytest.mark.parametrize(("name", "target"), [("for-the-app", NEW), ("int8", OLD)])
def test_a_plan_is_built_for_another_engine_with_the_scales_that_it_reads(
    run: RunFolder, table: SensitivityTable, name: str, target: EngineTarget
) -> None:
    planned, losses = planned_on(find_plan(name, run)), retarget_table(table, target)
    moved = edited_plan(planned, losses, target, estimate_fixed(table.model))
    for before, after in zip(planned.plan.tensors, moved.tensors, strict=True):
        assert after.format in losses.formats_of(after.name)
        assert (after.format.bits, after.format.block) == (before.format.bits, before.format.block)
    assert {t.format.scale_bits for t in moved.tensors if not t.format.is_float} == {target.scale_bits}


def test_a_plan_with_a_scale_per_block_may_not_choose_what_the_engine_garbles(tmp_path: Path) -> None:
    table = make_run(2, ("fp16", "int8", "int8-b32", "int4-b12", "int4"), hidden=192).table
    run = RunFolder(tmp_path / "tiny")
    table.write(run.sensitivity)
    plan = replace(make_plan(table, Budget.parse("int8"), estimate_fixed(table.model)), dynamic_option=2)
    sound = {t.name: t.format for t in plan.tensors}
    assert all(fmt.allows_block_activations for fmt in sound.values())
    plan.write(run.budget("int8") / "plan.json")
    planned = planned_on(find_plan("int8", run))
    garbled = QuantFormat(4, 12)
    assert any(garbled in planned.measured.formats_of(name) for name in sound)
    assert all(garbled not in planned.table.formats_of(name) for name in sound)
    name = next(t.name for t in plan.tensors if garbled in table.formats_of(t.name))
    edited = tuple(replace(t, format=garbled) if t.name == name else t for t in plan.tensors)
    replace(plan, tensors=edited).write(run.budget("edited") / "plan.json")
    assert garbled in planned_on(find_plan("edited", run)).table.formats_of(name)


def test_a_plan_for_another_memory_setting_has_the_losses_of_that(run: RunFolder, tmp_path: Path) -> None:
    opened = open_run(run.folder)
    other = opened.solve("int8", memory="normal")
    path = other.write(tmp_path / "mine.json")
    again = planned_on(find_plan(str(path)), run)
    assert again.table.goal == "normal"
    assert again.recounted() == other.plan
    only_normal = replace(again, plan=replace(again.plan, memory="low"), measured=again.table)
    with pytest.raises(InputError, match="memory 'low' was not measured; this run has normal"):
        only_normal.recounted()


def test_a_report_refuses_measurements_of_another_plan(run: RunFolder) -> None:
    path = run.budget("for-the-app") / "verification.json"
    replace(Verification.read(path), plan_sha256="0" * 64).write(path)
    with pytest.raises(StaleArtifactError, match="belongs to a different plan"):
        run_report("for-the-app", run, Language.en, print)
