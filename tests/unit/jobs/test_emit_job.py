"""Which engine a given plan is built for, and where."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from qplan.choosing.planned import PlannedOn, planned_on
from qplan.choosing.retarget import retarget_table
from qplan.cost.file_bytes import estimate_fixed
from qplan.jobs.checks import for_engine_of
from qplan.jobs.emit_job import EmitJob
from qplan.jobs.emitted import say_if_moved
from qplan.jobs.options import EmitOptions
from qplan.jobs.stages import Stages
from qplan.mnn.engines import EngineTarget, EngineVersion
from qplan.planner.budget import Budget
from qplan.planner.planning import make_plan
from qplan.run.folder import RunFolder
from qplan.run.plans import FoundPlan
from tests.support.invented_table import make_table

INSTALLED = str(EngineVersion.installed())
LOADED: Any = None
"""Stands for the model, which no folder's name depends on."""


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    run = RunFolder(tmp_path / "tiny")
    make_table().write(run.sensitivity)
    return run


def version(engine: str | None) -> EngineVersion | None:
    return None if engine is None else EngineVersion.parse(engine)


def given(run: RunFolder, place: str, engine: str | None) -> PlannedOn:
    table = make_table()
    if engine is not None:
        table = retarget_table(table, EngineTarget.of(EngineVersion.parse(engine)))
    plan = replace(make_plan(table, Budget.parse("70%"), estimate_fixed(table.model)), engine=engine)
    path = run.folder / place
    plan.write(path)
    return planned_on(FoundPlan(path, plan), run)


@pytest.mark.parametrize(
    ("made_for", "asked", "taken", "told"),
    [
        (None, None, None, ""),
        ("3.5.0", None, "3.5.0", ""),
        ("3.5.0", "3.5", "3.5", ""),
        (None, INSTALLED, INSTALLED, ""),
        ("3.5.0", "3.4.0", "3.4.0", "made for engine 3.5.0: building its formats as 3.4.0 reads them"),
        (None, "3.5.0", "3.5.0", f"made for engine {INSTALLED}: building its formats as 3.5.0 reads them"),
    ],
)
def test_the_engine_is_the_plans_unless_another_is_named(
    run: RunFolder, made_for: str | None, asked: str | None, taken: str | None, told: str
) -> None:
    planned, said = given(run, "mine/plan.json", made_for), list[str]()
    options = for_engine_of(planned, EmitOptions(plan=planned.path, engine=version(asked)))
    say_if_moved(planned, options, said.append)
    assert options.engine == version(taken)
    assert told in "".join(said)
    assert bool(said) == bool(told)


@pytest.mark.parametrize(
    ("place", "made_for", "engine", "expected"),
    [
        ("mine/plan.json", None, None, "mine"),
        ("mine/edited.json", None, None, "edited"),
        ("renamed/plan.json", "3.5.0", "3.5.0", "renamed"),
        ("renamed/plan.json", "3.5.0", "3.4.0", "renamed-mnn-3.4.0"),
        ("mine-mnn-3.5.0/plan.json", "3.5.0", INSTALLED, f"mine-mnn-{INSTALLED}"),
        ("mine-mnn-3.5.0/edited.json", "3.5.0", "3.5.0", "edited-mnn-3.5.0"),
        ("mine/plan.json", None, "3.5.0", "mine-mnn-3.5.0"),
    ],
)
def test_a_given_plan_keeps_its_folder_and_another_engine_gets_its_own(
    run: RunFolder, place: str, made_for: str | None, engine: str | None, expected: str
) -> None:
    planned = given(run, place, made_for)
    options = EmitOptions(plan=planned.path, engine=version(engine))
    job = EmitJob(
        options=options,
        run=run,
        table=planned.measured,
        model=LOADED,
        skeleton=LOADED,
        rounder=LOADED,
        heldout=LOADED,
        say=print,
        stages=Stages(None, print, print),
        given=planned,
    )
    assert job.folder.resolve() == (run.folder / expected).resolve()
    assert job.engine == engine


def test_a_plan_that_is_made_has_a_folder_by_budget_and_engine(run: RunFolder) -> None:
    options = EmitOptions(engine=version("3.5"))
    job = EmitJob(
        options=options,
        run=run,
        table=make_table(),
        model=LOADED,
        skeleton=LOADED,
        rounder=LOADED,
        heldout=LOADED,
        say=print,
        stages=Stages(None, print, print),
    )
    assert job.folder == run.folder / "int8-mnn-3.5.0"
    assert job.engine == "3.5.0"
