"""The embedded model, analyzed and planned anew: the numbers that an earlier qplan left."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import qplan.demo
from qplan.run.folder import RunFolder
from qplan.run.plan import Plan
from qplan.run.plan_folder import PlanFolder
from qplan.run.table import SensitivityTable
from tests.support.command import succeed
from tests.support.golden import FEW, FEW_OPTIONS

HOME = Path(qplan.demo.__file__).parent
THREADS = 2
"""What the golden run had: threads split sums of floats, and the scales of folds follow from their digits."""

EXACT, NEAR = 1e-6, 0.1
"""Relative: on a processor that sums as the golden run's did, and on others, whose folded model has other digits."""


_UNBUILT = ("--no-build", "--repair", "0")


@pytest.fixture(scope="module")
def again(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """The commands that made the golden run, whose mode was auto and whose budgets were files, without building."""
    folder, before = tmp_path_factory.mktemp("golden"), torch.get_num_threads()
    torch.set_num_threads(THREADS)
    try:
        model = str(HOME / "stdlib-3m")
        succeed("analyze", model, "--mode", "auto", *FEW_OPTIONS, "--run", "run", folder=folder)
        succeed("emit", "--run", "run", "--budget", "int8", "--parity", "files", *_UNBUILT, folder=folder)
    finally:
        torch.set_num_threads(before)
    return RunFolder(folder / "run")


@pytest.fixture(scope="module")
def tables(again: RunFolder) -> tuple[SensitivityTable, SensitivityTable]:
    """The golden table and the new one."""
    return SensitivityTable.read(RunFolder(FEW).sensitivity), SensitivityTable.read(again.sensitivity)


@pytest.fixture(scope="module")
def same_sums(tables: tuple[SensitivityTable, SensitivityTable]) -> bool:
    """Whether this processor folds to the same bytes."""
    before, now = tables
    return before.model.sha256 == now.model.sha256


def test_the_table_holds_the_same_losses(tables: tuple[SensitivityTable, SensitivityTable], *, same_sums: bool) -> None:
    before, now = tables
    assert now.conditions == before.conditions
    old, new = ({(m.tensor, m.format, m.memory, m.batch): m for m in table.measurements} for table in tables)
    assert old.keys() == new.keys()
    if same_sums:
        for cell, measurement in old.items():
            assert new[cell].kl_nats == pytest.approx(measurement.kl_nats, rel=EXACT)
            assert new[cell].source == measurement.source
    whole = [[point.joint_nats for point in table.joint] for table in tables]
    assert whole[1] == pytest.approx(whole[0], rel=EXACT if same_sums else NEAR)
    summed = [sum(m.kl_nats for m in table.measurements) for table in tables]
    assert summed[1] == pytest.approx(summed[0], rel=EXACT if same_sums else NEAR)


def test_the_plan_is_the_same(again: RunFolder, *, same_sums: bool) -> None:
    before, now = (
        Plan.read(PlanFolder(run.budget(name)).plan) for run, name in ((RunFolder(FEW), "int8"), (again, "int8-files"))
    )
    if same_sums:
        assert now.formats == before.formats
        assert now.files == before.files
    assert now.predicted_nats == pytest.approx(before.predicted_nats, rel=EXACT if same_sums else NEAR)
    assert (now.budget_bytes, now.dynamic_option) == (before.budget_bytes, before.dynamic_option)
