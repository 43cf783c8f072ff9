"""What may come next names commands, and plans that the frontier knows."""

from __future__ import annotations

from dataclasses import replace

from qplan.report.next_steps import next_steps
from qplan.run.plan import PlannedLimit
from tests.support.invented_run import small_run, swept_run


def test_a_plan_that_was_not_built_is_built_next() -> None:
    run = small_run()
    assert next_steps(run.plan, None, None)[0].command.startswith("qplan emit --plan plan.json")
    assert next_steps(run.plan, run.verification, None)[0].command.startswith("qplan run model")


def test_larger_and_smaller_plans_of_the_frontier_are_named() -> None:
    run = small_run()
    frontier = swept_run()
    sizes = [point.total_bytes for point in frontier.points]
    middle = replace(run.plan, files=replace(run.plan.files, weight=sizes[len(sizes) // 2], embedding=0, graph=0))
    named = [step.command for step in next_steps(middle, run.verification, frontier) if "--budget" in step.command]
    budgets = [float(command.split("--budget ")[1].split("MB")[0]) * 1e6 for command in named]
    assert budgets[0] < middle.files.total < budgets[-1]
    said = " ".join(step.said for step in next_steps(middle, run.verification, frontier))
    assert "RAM and speed" not in said
    promised = replace(middle, limits=(PlannedLimit("RAM", 2.0, 1.0, "MB", "int8"),))
    steps = [step.said for step in next_steps(promised, run.verification, frontier) if "--budget" in step.command]
    assert all("any RAM and speed" in told for told in steps)
