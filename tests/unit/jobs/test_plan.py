"""A plan from the table alone, and what a better one costs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from qplan.choosing.request import PlanRequest
from qplan.explore import open_run
from qplan.jobs.options import PlanOptions
from qplan.jobs.plan import run_plan
from qplan.mnn.engines import EngineVersion
from qplan.planner.budget import parse_budgets
from qplan.planner.rules import Rules
from qplan.planner.size import Size
from qplan.run.folder import RunFolder
from qplan.run.profile import DeviceProfile, OpTime
from tests.support.command import qplan
from tests.support.invented_table import make_table, with_parts


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    found = RunFolder(tmp_path / "run")
    make_table().write(found.sensitivity)
    return found


def asked(*budgets: str, rules: Rules | None = None) -> PlanOptions:
    return PlanOptions(wanted=PlanRequest(budgets=parse_budgets(budgets), rules=rules or Rules()))


@pytest.mark.parametrize("budget", ["int4", "6bpw", "60%"])
def test_it_is_the_plan_that_notebooks_solve(run: RunFolder, budget: str) -> None:
    found = run_plan(asked(budget), run, print)
    again = open_run(run.folder).solve(budget).plan
    assert found.plan.formats == again.formats
    assert found.plan.sensitivity_sha256 == again.sensitivity_sha256
    assert found.times is None


@pytest.mark.parametrize("budget", ["int4", "6bpw"])
def test_a_machine_that_is_too_busy_for_the_solver_still_gets_a_plan(
    run: RunFolder, budget: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = run_plan(asked(budget), run, print)
    for limit in ("_TIME_LIMIT_S", "_LARGER_TIME_LIMIT_S"):
        monkeypatch.setattr(f"qplan.jobs.plan.{limit}", -1.0)
    busy = run_plan(asked(budget), run, print)
    assert busy.plan.files.total <= busy.plan.budget_bytes
    assert busy.plan.predicted_nats >= free.plan.predicted_nats


@pytest.mark.parametrize("budget", ["int6", "6bpw"])
def test_larger_plans_lose_less_and_keep_to_their_budgets_and_rules(run: RunFolder, budget: str) -> None:
    rules = Rules.parse(pins={"*.0.mlp.down_proj": "int8"})
    found = run_plan(asked(budget, rules=rules), run, print)
    assert found.larger
    sizes = [one.files.total for one in (found.plan, *found.larger)]
    assert sizes == sorted(sizes)
    for larger in found.larger:
        assert larger.predicted_nats < found.plan.predicted_nats
        assert larger.files.total <= larger.budget_bytes
        assert larger.formats["model.layers.0.mlp.down_proj"].name == "int8"
        again = run_plan(asked(larger.budget, rules=rules), run, print)
        assert again.plan.formats == larger.formats


def test_uniform_exports_have_the_losses_of_the_option_that_their_times_are_of(run: RunFolder) -> None:
    table = with_parts(1e-3, 1e-4, 2e-3)
    table.write(run.sensitivity)
    found = run_plan(asked("int8", rules=Rules(parity="files")), run, print)
    assert found.plan.dynamic_option == 2
    losses, tensors = table.kl("low"), [spec.name for spec in table.model.tensors]
    assert found.uniform_nats["int8"] == pytest.approx(sum(losses[name]["int8"] for name in tensors))
    assert found.plan.predicted_nats < found.uniform_nats["int8"]
    assert found.plan.sensitivity_sha256 == table.sha256


def test_a_plan_that_nothing_limits_has_none_above_it(run: RunFolder) -> None:
    assert run_plan(asked("200%"), run, print).larger == ()


def test_limits_that_were_given_hold_for_larger_plans(run: RunFolder) -> None:
    plain = run_plan(asked("60%"), run, print)
    assert plain.plan.footprint is not None
    most = plain.plan.footprint.ram_bytes
    options = asked("60%")
    options = replace(options, wanted=replace(options.wanted, max_ram=Size.parse(f"{most}B", "--max-ram")))
    for one in run_plan(options, run, print).larger:
        assert one.footprint is not None
        assert one.footprint.ram_bytes <= most


def test_a_profile_gives_times(run: RunFolder) -> None:
    table = make_table()
    formats = run_plan(asked("int8"), run, print).plan.formats
    shapes = {(spec.out_features, spec.in_features) for spec in table.model.tensors}
    names = {fmt.name for fmt in formats.values()} | {"int8", "int8-b0", "int4", "int4-b0", "fp16"}
    ops = tuple(OpTime(*shape, name, 1, 0.5, 0.25) for shape in shapes for name in names)
    profile = DeviceProfile("m", "3.6.1", "cpu-x86", "normal", 1, 64, table.model.sha256, "int8", 10.0, 1.0, ops)
    profile.write(run.device)
    times = run_plan(asked("int8"), run, print).times
    assert times is not None
    assert times.decode_ms == pytest.approx(1 + 0.25 * len(table.model.tensors))
    replace(profile, model_sha256="0" * 64).write(run.device)
    assert run_plan(replace(asked("6bpw")), run, print).times is None


def test_for_an_older_engine_scales_are_wide(run: RunFolder) -> None:
    plan = run_plan(replace(asked("int8"), engine=EngineVersion.parse("3.5.0")), run, print).plan
    assert plan.engine == "3.5.0"
    assert {fmt.scale_bits for fmt in plan.formats.values() if not fmt.is_float} == {32}


def test_people_see_what_it_takes_and_the_command_that_builds_it(run: RunFolder) -> None:
    shown = qplan("plan", "--budget", "int4", "--run", "run", folder=run.folder.parent).stdout
    for words in (
        "Plan for int4",
        "RAM, MB",
        "uniform int8",
        "+ --budget",
        "the same rules and dynamic_option",
        "next:  qplan emit --budget int4 --run run",
    ):
        assert words in shown
    written = qplan("plan", "--out", "p.json", "--run", "run", folder=run.folder.parent).stdout
    assert "next:  qplan emit --plan p.json --run run" in written
