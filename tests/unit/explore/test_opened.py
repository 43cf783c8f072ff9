"""A notebook's solves are those of the command line, and what there is can be found."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest

import qplan
from qplan.errors import InfeasibleError, InputError
from qplan.explore import Run, open_run
from qplan.run.plan import Plan
from tests.support.command import succeed
from tests.support.golden import FEW


@pytest.fixture(params=["invented", "few"])
def opened(request: pytest.FixtureRequest, saved: Path) -> Run:
    return open_run({"invented": saved, "few": FEW}[request.param])


@pytest.mark.parametrize("budget", ["int8", "fp16", "70%"])
def test_a_solve_is_the_plan_of_the_command_line(opened: Run, budget: str, tmp_path: Path) -> None:
    succeed("plan", "--budget", budget, "--run", str(opened.folder), "--out", "theirs.json", folder=tmp_path)
    theirs, ours = Plan.read(tmp_path / "theirs.json"), opened.solve(budget).plan
    assert ours.formats == theirs.formats
    assert ours.dynamic_option == theirs.dynamic_option
    assert ours.predicted_nats == theirs.predicted_nats
    assert ours.files == theirs.files
    assert ours.sensitivity_sha256 == theirs.sensitivity_sha256
    assert [limit.of for limit in ours.limits] == [limit.of for limit in theirs.limits]


def test_the_default_budget_is_that_of_the_command_line(opened: Run, tmp_path: Path) -> None:
    succeed("plan", "--run", str(opened.folder), "--out", "theirs.json", folder=tmp_path)
    assert opened.solve().plan.formats == Plan.read(tmp_path / "theirs.json").formats


def test_the_first_feasible_budget_is_the_first_that_has_a_plan(run: Run) -> None:
    assert run.first_feasible("1MB", "int4", "int8") in {"1MB", "int4"}
    assert run.first_feasible(1, "int8") == "int8"
    with pytest.raises(InfeasibleError):
        run.first_feasible(1, 2)
    with pytest.raises(InputError, match="at least one budget"):
        run.first_feasible()
    fits, refused = run.solve("int4").total_bytes, {"*.q_proj": 16}
    assert run.first_feasible(fits, "fp16", min_bits=refused) == "fp16"


def test_formats_to_look_at_are_those_of_the_run(opened: Run) -> None:
    table = opened.table
    assert (table.narrow, table.wide_integers) == ("int4", "int8")
    assert len(table.of()) == len(table.tensors)
    across = table.across()
    assert list(across) == ["low", "normal", "low_over_normal"]
    assert (
        across.loc["lm_head", "normal"] == table.under("normal").of("int8").set_index("tensor")["loss_nats"]["lm_head"]
    )
    with pytest.raises(InputError, match="'int7' was not measured; choose from"):
        table.of("int7")


def test_what_there_is_is_seen_and_has_examples() -> None:
    assert {"Engine", "open_run", "__version__"} <= set(dir(qplan))
    for found in (qplan.open_run, Run.solve, Run.first_feasible, Run.plot_ranking, Run.plot_weights, Run.plot_losses):
        assert ">>> " in (inspect.getdoc(found) or ""), found
