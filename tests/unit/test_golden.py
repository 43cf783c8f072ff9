"""Run folders of before the rooms were rearranged still open, and plans come out of them as they did."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from qplan.choosing.planned import planned_on
from qplan.cli.main import main
from qplan.explore import open_run
from qplan.formats import INT4
from qplan.planner.budget import Budget
from qplan.planner.planning import make_plan
from qplan.planner.rules import Rules
from qplan.run.baselines import baseline_path, measured_once
from qplan.run.calibration import CalibrationSet
from qplan.run.fold import FoldRecord
from qplan.run.folder import RunFolder
from qplan.run.frontier import find_frontier
from qplan.run.journal import Journal
from qplan.run.moments import StoredMoments
from qplan.run.plan import Plan
from qplan.run.plan_folder import PlanFolder
from qplan.run.plans import find_plan
from qplan.run.profile import DeviceProfile
from qplan.run.provenance import Provenance
from qplan.run.rounded import RoundedTensors
from qplan.run.skeleton_record import SkeletonRecord
from qplan.run.table import SensitivityTable
from qplan.run.token_losses import TokenLosses
from qplan.run.verification import Verification
from qplan.uniform import uniform_formats
from tests.support.golden import ENGINE_PLAN, GOLDEN, solved

TENSOR = "model.layers.0.self_attn.q_proj"
"""The tensor whose moments and integers are kept."""


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """A copy of the golden run: commands write into it."""
    shutil.copytree(GOLDEN, tmp_path / "stdlib-3m")
    return RunFolder(tmp_path / "stdlib-3m")


@pytest.fixture(scope="module")
def table() -> SensitivityTable:
    return SensitivityTable.read(RunFolder(GOLDEN).sensitivity)


def test_the_table_has_the_hash_that_its_plans_recorded(table: SensitivityTable) -> None:
    plan = Plan.read(PlanFolder(GOLDEN / "int8").plan)
    assert table.sha256 == plan.sensitivity_sha256
    assert len(table.measurements) == 2_204
    assert all(str(note) for note in table.notes)


def test_every_other_artifact_reads(run: RunFolder, table: SensitivityTable) -> None:
    card, files = table.model, PlanFolder(run.folder / "int8")
    assert CalibrationSet.read(run.calibration).sha256 == table.conditions.calibration_sha256
    assert FoldRecord.read(run.fold).folded_sha256 == card.sha256
    assert DeviceProfile.read(run.device).model_sha256 == card.sha256
    _, skeleton = run.skeleton_for()
    assert SkeletonRecord.read(skeleton).model == card.sha256
    verification = Verification.read(files.verification)
    assert verification.passed
    assert verification.model("plan") is not None
    assert TokenLosses.read(files.token_losses).model_sha256 == card.sha256
    assert Provenance.read(files).commands[0].startswith("qplan emit")
    stored = json.loads((run.frontier / "frontier.json").read_text())["inputs"]
    assert stored["sensitivity"] == table.sha256


def test_integers_and_moments_are_found_again(run: RunFolder, table: SensitivityTable) -> None:
    (kept,) = run.rounding.glob("tensors-*")
    inputs = {"model": table.model.sha256, "rounding": table.conditions.rounding}
    calibration = CalibrationSet.read(run.calibration)
    inputs |= {"fit": calibration.fit_sha256, "judge": calibration.sha256}
    tensors = RoundedTensors.of(run, inputs)
    assert tensors.folder == kept
    arrays = tensors.read(TENSOR, INT4, slice(0, 8))
    assert arrays is not None
    assert arrays.codes.shape == (8, 192)
    assert int(arrays.codes.max()) < 16
    (folder,) = run.rounding.glob("fit-*")
    moments = StoredMoments.open(folder, {"model": table.model.sha256, "tokens": calibration.fit_sha256})
    assert moments is not None
    matrix = moments.read(TENSOR)
    assert np.array_equal(matrix, matrix.T)
    assert matrix.shape == (192, 192)


def test_what_its_journal_holds_is_not_lost(run: RunFolder, table: SensitivityTable) -> None:
    fingerprint = json.loads(run.journal.read_text(encoding="utf-8").splitlines()[0])["fingerprint"]
    with Journal(run.journal, fingerprint) as journal:
        kept = journal.measurements.values()
    assert len(kept) == 38
    assert {m.tensor for m in kept} <= {tensor.name for tensor in table.model.tensors}
    assert all(m.kl_nats > 0 for m in kept)


@pytest.mark.parametrize("name", ["int8", "int4", ENGINE_PLAN])
def test_its_plans_are_explained_and_counted_as_they_were(run: RunFolder, name: str) -> None:
    planned = planned_on(find_plan(name, run), run)
    assert planned.recounted().files == planned.plan.files
    assert planned.recounted().predicted_nats == pytest.approx(planned.plan.predicted_nats, rel=1e-9)
    for command in (["explain", name], ["plan", "diff", "int4", name], ["report", name]):
        with pytest.raises(SystemExit) as ended:
            main([*command, "--run", str(run.folder), "--quiet"])
        assert ended.value.code == 0


def test_a_notebook_opens_it(run: RunFolder) -> None:
    opened = open_run(run.folder)
    assert set(opened.budgets) == {"int8", "int4", ENGINE_PLAN}
    assert opened.built == ("int8",)
    assert opened.plan(ENGINE_PLAN).plan.engine == "3.5.0"
    assert opened.verification["measured_nats"].notna().any()


def test_the_stored_frontier_is_taken_for_what_it_is(run: RunFolder, table: SensitivityTable) -> None:
    from qplan.planner.frontier import sweep_of  # noqa: PLC0415 - this test alone

    planned = planned_on(find_plan("int8", run), run)
    found = find_frontier([run.folder / "int8"], sweep_of(table, planned.rules, planned.fixed))
    assert found is not None
    assert len(found.points) > 8


@pytest.mark.parametrize("name", solved())
def test_the_solver_finds_the_plans_that_it_found(table: SensitivityTable, name: str) -> None:
    budget, _, bits = name.partition(", logits_bits ")
    expected = solved()[name]
    fixed = planned_on(find_plan("int8", RunFolder(GOLDEN)), RunFolder(GOLDEN)).fixed
    plan = make_plan(table, Budget.parse(budget), fixed, rules=Rules(logits_bits=int(bits)))
    assert {tensor.name: tensor.format.name for tensor in plan.tensors} == expected["formats"]
    assert plan.files.total == expected["total_bytes"] <= plan.budget_bytes == expected["budget_bytes"]
    assert plan.predicted_nats == pytest.approx(expected["predicted_nats"], rel=1e-9)


def test_a_baseline_is_not_measured_again(run: RunFolder, table: SensitivityTable) -> None:
    path = baseline_path(run.baselines, "int8")
    stored = json.loads(path.read_text())["inputs"]
    inputs = {key: value for key, value in stored.items() if key != "formats"}
    original = replace(table.model, sha256=stored["model"])
    found = measured_once(path, inputs, uniform_formats(original, 8), lambda: pytest.fail("measured again"))
    assert found.name == "int8"
