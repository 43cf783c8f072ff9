"""Plans by name, and what a sweep leaves in a run."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from qplan.artifact import SEAL
from qplan.choosing.parity import promised
from qplan.choosing.planned import PlannedOn, edited_plan, planned_on
from qplan.cli.main import main
from qplan.cost.file_bytes import estimate_fixed
from qplan.errors import InputError, StaleArtifactError
from qplan.formats import INT4, INT8
from qplan.jobs.frontier import run_frontier
from qplan.jobs.report import plan_frontier, run_report
from qplan.mnn.engines import EngineTarget, EngineVersion
from qplan.notes import text_note
from qplan.planner.budget import Budget
from qplan.planner.frontier import sweep_of
from qplan.planner.planning import make_plan
from qplan.planner.rules import Rules
from qplan.report.words import Language
from qplan.run.folder import RunFolder
from qplan.run.frontier import find_frontier
from qplan.run.plan import Plan
from qplan.run.plans import FoundPlan, find_plan, newest_plan
from qplan.run.verification import Verification
from tests.support.invented_table import make_table


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """A run with a table and plans for int4 and int8."""
    run, table = RunFolder(tmp_path / "runs" / "tiny"), make_table()
    table.write(run.sensitivity)
    for budget in ("int4", "int8"):
        make_plan(table, Budget.parse(budget), estimate_fixed(table.model)).write(run.budget(budget) / "plan.json")
    return run


def edit(path: Path, kind: str, fmt: str) -> Path:
    """Save a plan with other formats and stale numbers, as an editor would."""
    document = json.loads(path.read_text())
    for tensor in document["tensors"]:
        if tensor["kind"] == kind:
            tensor["format"] = fmt
    edited = path.with_name("edited.json")
    edited.write_text(json.dumps(document, indent=1))
    return edited


def test_a_plan_is_a_file_a_folder_or_a_budget(run: RunFolder) -> None:
    file = run.budget("int4") / "plan.json"
    plans = [find_plan(name, run).plan for name in (str(file), str(file.parent), "int4")]
    assert plans[0] == plans[1] == plans[2] == Plan.read(file)
    with pytest.raises(InputError, match=r"no plan '3bpw'.*which has int4, int8; make it with"):
        find_plan("3bpw", run)
    assert planned_on(find_plan(str(file))).measured.sha256 == plans[0].sensitivity_sha256


def test_an_edited_plan_is_counted_again(run: RunFolder) -> None:
    path = edit(run.budget("int4") / "plan.json", "up_proj", "int8")
    table, fixed = make_table(), estimate_fixed(make_table().model)
    installed = EngineTarget.of(EngineVersion(3, 6, 1))
    plan = edited_plan(planned_on(find_plan(str(path)), run), table, installed, fixed)
    assert {t.format for t in plan.tensors if t.kind == "up_proj"} == {INT8}
    assert plan.files.total == plan.budget_bytes > Plan.read(path).files.total
    assert any("edited by hand" in str(note) for note in plan.notes)
    assert planned_on(find_plan(str(path))).recounted().files == plan.files
    other = replace(table, reference_nll_nats=9.0)
    with pytest.raises(StaleArtifactError, match="other losses"):
        planned_on(find_plan(str(path)), run, other)
    bad = edit(run.budget("int4") / "plan.json", "q_proj", "int3")
    line = 1 + next(i for i, text in enumerate(bad.read_text().splitlines()) if '"int3"' in text)
    with pytest.raises(InputError, match=rf"edited.json, line {line}, tensors\[0\].format: .*int3 was not measured"):
        edited_plan(planned_on(find_plan(str(bad)), run), table, installed, fixed)


def test_a_sweep_leaves_a_table_a_plot_and_numbers(run: RunFolder) -> None:
    swept = run_frontier(run, Rules(), 8)
    plot, markdown, numbers = swept.files
    document = json.loads(numbers.read_text())
    assert document["kind"] == "qplan-frontier"
    sizes = [point["total_bytes"] for point in document["points"]]
    assert sizes == sorted(sizes)
    assert set(document["points"][0]["formats"]) == {spec.name for spec in make_table().model.tensors}
    assert [model["name"] for model in document["uniform"]] == ["int4", "int6", "int8", "fp16"]
    assert plot.read_bytes().startswith(b"\x89PNG")
    text = markdown.read_text()
    assert [plan["name"] for plan in document["named"]] == ["int4", "int5", "int6", "int8", "fp16"]
    assert text.count("\n| ") == len(sizes) + 4 + 5 + 1
    assert ("**knee**" in text) == any(point["knee"] for point in document["points"])


def qplan(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: str) -> str:
    monkeypatch.setattr(sys, "argv", ["qplan", *arguments])
    with pytest.raises(SystemExit) as end:
        main()
    assert not end.value.code
    return capsys.readouterr().out


def test_commands_that_look_at_plans(
    run: RunFolder, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(run.folder.parent.parent)
    where = ("--run", str(run.folder))
    sweep = qplan(capsys, monkeypatch, "frontier", "--points", "8", *where)
    assert re.search(r"int8 .*unif", sweep)
    assert "frontier.png" in sweep
    overview = qplan(capsys, monkeypatch, "explain", "int4", *where)
    assert "0.mlp.down_proj" in overview
    assert "lm_head" in overview
    one = qplan(capsys, monkeypatch, "explain", "int4", "0.mlp.down_proj", *where)
    assert "◀ planned" in one
    assert "◁ next best" in one
    changed = qplan(capsys, monkeypatch, "plan", "diff", "int4", "int8", *where)
    plans = [Plan.read(run.budget(budget) / "plan.json") for budget in ("int4", "int8")]
    assert f"{plans[1].files.total - plans[0].files.total:+,}" in changed
    count = sum(a.format != b.format for a, b in zip(plans[0].tensors, plans[1].tensors, strict=True))
    assert re.search(rf"\b{count} of 13 tensors changed", changed)
    assert INT4.name in changed


def test_a_report_is_made_again_in_another_language(
    run: RunFolder, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(run.folder.parent.parent)
    where = ("--run", str(run.folder))
    folder = run.budget("int4")
    printed = qplan(capsys, monkeypatch, "report", "int4", "--lang", "zh", *where)
    assert "report.html" in printed
    page, short = ((folder / name).read_text(encoding="utf-8") for name in ("report.html", "report.md"))
    assert '<html lang="zh-CN">' in page
    assert "尚未构建模型" in page
    assert "各张量的位宽" in short
    stored = json.loads((folder / "frontier.json").read_text())
    assert page.count("<tr data-stop=") == len(stored["points"])
    made = (folder / "frontier.json").stat().st_mtime_ns
    qplan(capsys, monkeypatch, "report", str(folder), "--lang", "EN")
    assert '<html lang="en">' in (folder / "report.html").read_text(encoding="utf-8")
    assert (folder / "frontier.json").stat().st_mtime_ns == made, "the stored frontier was solved again"
    assert "using" not in capsys.readouterr().err


def test_the_stored_frontier_is_taken_if_it_is_the_plans(run: RunFolder) -> None:
    plan, table, told = Plan.read(run.budget("int4") / "plan.json"), make_table(), list[str]()
    fine = run_frontier(run, Rules(), 40).frontier

    def planned(plan: Plan, budget: str) -> PlannedOn:
        return planned_on(FoundPlan(run.budget(budget) / "plan.json", plan), run)

    found = plan_frontier(planned(plan, "int4"), told.append)
    assert (found.points, found.uniform, told) == (fine.points, fine.uniform, [])
    assert not (run.budget("int4") / "frontier.json").exists()
    pinned = make_plan(table, Budget.parse("70%"), estimate_fixed(table.model), rules=Rules(pins={"*.q_proj": INT8}))
    own = plan_frontier(planned(pinned, "pinned"), told.append)
    assert told == ["other budgets: solving 24"]
    assert all(fmt == INT8 for point in own.points for name, fmt in point.formats.items() if name.endswith("q_proj"))
    limits = promised(Rules.of(pinned), table, run)
    sweep = sweep_of(table, Rules.of(pinned), estimate_fixed(table.model), promised=limits)
    assert find_frontier([run.budget("int4"), run.budget("pinned")], sweep) == own
    older = json.loads((run.folder / "frontier" / "frontier.json").read_text())
    del older["inputs"]["rules"], older[SEAL]
    (run.folder / "frontier" / "frontier.json").write_text(json.dumps(older))
    plan_frontier(planned(plan, "int4"), told.append)
    assert len(told) == 2


def test_a_report_needs_artifacts_that_belong_together(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run.folder.parent.parent)
    newest = run.budget("int8") / "plan.json"
    newest.touch()
    assert newest_plan(run).path == newest
    with pytest.raises(InputError, match="no plan in empty; make one with 'qplan emit'"):
        newest_plan(RunFolder(Path("empty")))
    replace(make_table(), reference_nll_nats=9.0).write(run.sensitivity)
    with pytest.raises(StaleArtifactError, match="other losses"):
        run_report("int8", run, Language.en, print)
    make_table().write(run.sensitivity)
    plan = Plan.read(newest)
    Verification(plan.model_sha256, "0" * 64, text_note("words"), "0" * 64, 9.0, (), ()).write(
        newest.with_name("verification.json")
    )
    with pytest.raises(StaleArtifactError, match="belongs to a different plan"):
        run_report("int8", run, Language.en, print)
    assert not newest.with_name("report.html").exists()
