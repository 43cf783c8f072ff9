"""The embedded model, analyzed and planned anew: the numbers that an earlier qplan left."""

from __future__ import annotations

from pathlib import Path

import pytest

import qplan.demo
from qplan.run.folder import RunFolder
from qplan.run.plan import Plan
from qplan.run.plan_folder import PlanFolder
from qplan.run.table import SensitivityTable
from tests.support.command import succeed
from tests.support.golden import GOLDEN

HOME = Path(qplan.demo.__file__).parent
DIGITS = 1e-3
"""Relative: other processors add up in another order, and integers at rounding edges follow."""


@pytest.fixture(scope="module")
def again(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """The same commands as those that made the golden run, without building."""
    folder = tmp_path_factory.mktemp("golden")
    model = str(HOME / "stdlib-3m")
    succeed("analyze", model, "--samples", "8", "--seq-len", "256", "--run", "run", folder=folder)
    for budget in ("int8", "int4"):
        succeed("emit", "--run", "run", "--budget", budget, "--no-build", folder=folder)
    return RunFolder(folder / "run")


def test_the_table_holds_the_same_losses(again: RunFolder) -> None:
    before, now = (SensitivityTable.read(run.sensitivity) for run in (RunFolder(GOLDEN), again))
    assert now.model.sha256 == before.model.sha256  # folded with the same factors
    assert now.conditions == before.conditions
    cells = [{(m.tensor, m.format, m.memory, m.batch): m for m in table.measurements} for table in (before, now)]
    assert cells[0].keys() == cells[1].keys()
    for cell, old in cells[0].items():
        assert cells[1][cell].kl_nats == pytest.approx(old.kl_nats, rel=DIGITS, abs=1e-12)
        assert cells[1][cell].source == old.source
    assert [p.joint_nats for p in now.joint] == pytest.approx([p.joint_nats for p in before.joint], rel=DIGITS)


@pytest.mark.parametrize("budget", ["int8", "int4"])
def test_the_plans_are_the_same(again: RunFolder, budget: str) -> None:
    before, now = (Plan.read(PlanFolder(run.budget(budget)).plan) for run in (RunFolder(GOLDEN), again))
    assert now.formats == before.formats
    assert now.files == before.files
    assert now.predicted_nats == pytest.approx(before.predicted_nats, rel=DIGITS)
    assert (now.budget_bytes, now.dynamic_option) == (before.budget_bytes, before.dynamic_option)
