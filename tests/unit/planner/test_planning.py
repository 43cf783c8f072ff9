"""Plans from tables: the budget, the logits rule, pins, and errors that help."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest

from qplan.cost.file_bytes import FixedBytes, file_bytes
from qplan.errors import InfeasibleError, InputError, MeasurementError
from qplan.formats import FP16, INT4, INT8, QuantFormat
from qplan.planner.budget import Budget
from qplan.planner.ceiling import Ceiling
from qplan.planner.metric import Metric, loss_of
from qplan.planner.planning import make_plan
from qplan.planner.problem import Problem, build_problem
from qplan.planner.rules import Rules
from qplan.planner.solver.solver import solve
from qplan.run.additivity import JointPoint
from qplan.run.measurement import Loss
from qplan.run.table import SensitivityTable
from qplan.tensors import TensorGroup
from tests.support.invented_table import make_table

HEAD = "lm_head"


def losses(table: SensitivityTable) -> dict[str, dict[str, float]]:
    return {t: {f: loss.kl_nats for f, loss in row.items()} for t, row in table.losses().items()}


@pytest.mark.parametrize("budget", ["int4", "int8", "fp16", "6bpw", "70%", "400kB"])
def test_a_plan_keeps_its_budget_and_beats_uniform(budget: str, table: SensitivityTable, fixed: FixedBytes) -> None:
    plan = make_plan(table, Budget.parse(budget), fixed)
    assert plan.files == file_bytes(table.model, plan.formats, fixed)
    assert plan.files.total <= plan.budget_bytes == Budget.parse(budget).resolve(table.model, fixed).limit_bytes
    assert plan.predicted_nats == math.fsum(t.loss_nats for t in plan.tensors)
    assert plan.solver.status == "optimal"
    assert plan.solver.gap == 0
    for point in plan.uniform:
        if point.total_bytes <= plan.budget_bytes:
            assert point.predicted_nats is not None
            assert plan.predicted_nats <= point.predicted_nats


def test_equals_brute_force_over_plans(fixed: FixedBytes) -> None:
    table = make_table(layers=2)
    for budget in ("int4", "int8", "7bpw"):
        plan = make_plan(table, Budget.parse(budget), fixed)
        table_losses, best = losses(table), math.inf
        menu = [table.formats_of(t.name) for t in table.model.tensors]
        for formats in itertools.product(*menu):
            chosen = dict(zip((t.name for t in table.model.tensors), formats, strict=True))
            head = chosen.pop(HEAD)
            sizes = {t.name: t.weights for t in table.model.tensors}
            mean = sum(sizes[n] * f.bits for n, f in chosen.items()) / sum(sizes[n] for n in chosen)
            chosen[HEAD] = head
            if head.bits < 8 or head.bits < mean:
                continue
            if file_bytes(table.model, chosen, fixed).total <= plan.budget_bytes:
                best = min(best, math.fsum(table_losses[n][f.name] for n, f in chosen.items()))
        assert plan.predicted_nats == pytest.approx(best, rel=1e-12)


def test_the_logits_rule_has_a_price(table: SensitivityTable, fixed: FixedBytes) -> None:
    tight = make_plan(table, Budget.parse("int4"), fixed)
    assert tight.formats[HEAD].bits >= 8
    free = make_plan(table, Budget.parse("int4"), fixed, rules=Rules(logits_bits=0))
    assert tight.logits.at_least_mean
    assert tight.logits.min_bits == 8
    assert tight.logits.price_nats == pytest.approx(tight.predicted_nats - free.predicted_nats)
    assert tight.logits.head_format_without == free.formats[HEAD].name
    assert free.logits.price_nats == 0
    assert not free.logits.at_least_mean


def test_the_head_is_never_below_the_mean_of_the_others(table: SensitivityTable, fixed: FixedBytes) -> None:
    for budget in ("80%", "90%", "95%", "99%"):
        plan = make_plan(table, Budget.parse(budget), fixed, rules=Rules(logits_bits=4))
        others = [t for t in plan.tensors if t.name != HEAD]
        mean = sum(t.format.bits * t.weights for t in others) / sum(t.weights for t in others)
        assert plan.formats[HEAD].bits >= mean


def test_pins_and_least_widths(table: SensitivityTable, fixed: FixedBytes) -> None:
    rules = Rules(pins={"*.1.*": FP16, "model.layers.2.mlp.up_proj": INT4}, min_bits={"q_proj": 6})
    plan = make_plan(table, Budget.parse("int8"), fixed, rules=rules)
    assert all(t.format == FP16 for t in plan.tensors if t.layer == 1)
    assert plan.formats["model.layers.2.mlp.up_proj"] == INT4
    assert all(t.format.bits >= 6 for t in plan.tensors if t.kind == "q_proj")


@pytest.mark.parametrize(
    ("rules", "problem"),
    [
        (Rules(pins={"*.qproj": INT4}), "--pin '\\*.qproj' matches no tensor; similar names: .*q_proj"),
        (Rules(min_bits={"zzz": 4}), "--min-bits 'zzz' matches no tensor; similar names: "),
        (
            Rules(pins={"q_proj": QuantFormat(3)}),
            "pinned to int3; measured and legal: fp16, int8, int6, int4; add int3",
        ),
        (Rules(pins={HEAD: INT4}), "lm_head is pinned to int4 and must have at least 8 bits"),
        (Rules(pins={"*": INT4, HEAD: INT8}), "lm_head is pinned to int4 by '\\*' and to int8 by 'lm_head'"),
        (Rules(pins={HEAD: QuantFormat(6)}), "lm_head is pinned to int6; .*tokens are looked up in 4, 8 or 16 bits"),
        (Rules(min_bits={"q_proj": 16}, pins={"q_proj": INT4}), "pinned to int4 and must have at least 16 bits"),
    ],
)
def test_options_that_cannot_be_met(rules: Rules, problem: str, table: SensitivityTable, fixed: FixedBytes) -> None:
    with pytest.raises(InputError, match=problem):
        make_plan(table, Budget.parse("int8"), fixed, rules=rules)


def test_head_without_a_wide_format(fixed: FixedBytes) -> None:
    with pytest.raises(InputError, match="lm_head needs at least 8 bits; measured and legal: int4; add int8 or fp16"):
        make_plan(make_table(("int4",)), Budget.parse("int8"), fixed)


@pytest.mark.parametrize("unit", ["kB", "bpw", "%"])
def test_infeasible_names_the_smallest_in_the_users_unit(unit: str, table: SensitivityTable, fixed: FixedBytes) -> None:
    with pytest.raises(InfeasibleError) as error:
        make_plan(table, Budget.parse(f"1{unit}"), fixed)
    message = str(error.value)
    assert "all int4, head int8 by the logits rule" in message
    assert "raise it, add int3 to --formats or lower --logits-bits" in message
    said = message.split("smallest plan, ")[1].split(",", maxsplit=1)[0].replace(" ", "")
    plan = make_plan(table, Budget.parse(said), fixed)
    smallest = int(message.split(f"{unit}, ")[1].split(" bytes", maxsplit=1)[0].replace(",", ""))
    assert plan.files.total == smallest or plan.files.total <= plan.budget_bytes
    assert make_plan(table, Budget.of_bytes(smallest), fixed).files.total == smallest
    with pytest.raises(InfeasibleError):
        make_plan(table, Budget.of_bytes(smallest - 1), fixed)


def test_pins_against_the_logits_rule(table: SensitivityTable, fixed: FixedBytes) -> None:
    with pytest.raises(InfeasibleError, match="mean width of the other tensors"):
        make_plan(table, Budget.parse("fp16"), fixed, rules=Rules(pins={"model.*": FP16, HEAD: INT8}))


def test_uniform_of_odd_widths_is_not_measured() -> None:
    table = make_table(hidden=172, inner=100)
    plan = make_plan(table, Budget.parse("int4"), FixedBytes(0, 0, 20_000, exact=False))
    assert [p.predicted_nats is None for p in plan.uniform] == [True, True, False]
    assert any("rows of 100, 172" in str(note) for note in plan.notes)
    assert any("estimate" in str(note) for note in plan.notes)
    assert plan.formats["model.layers.0.mlp.down_proj"].block == 0


def test_groups_share_a_format_across_widths() -> None:
    table = make_table(hidden=128, inner=172)
    plan = make_plan(
        table, Budget.parse("6bpw"), FixedBytes(0, 0, 0, exact=True), rules=Rules(group_patterns=("{layer}.*",))
    )
    for layer in range(4):
        assert len({t.format.bits for t in plan.tensors if t.layer == layer}) == 1
    down = plan.formats["model.layers.0.mlp.down_proj"]
    assert down.is_float or down.block == 0


def test_impossible_losses_are_refused(table: SensitivityTable, fixed: FixedBytes) -> None:
    rows = tuple(replace(m, kl_nats=-1.0) for m in table.measurements)
    with pytest.raises(MeasurementError, match="impossible"):
        make_plan(replace(table, measurements=rows), Budget.parse("int8"), fixed)


def test_another_resource_and_the_smallest_plan(table: SensitivityTable, fixed: FixedBytes) -> None:
    alone = tuple(TensorGroup(spec.name, (spec,)) for spec in table.model.tensors)
    problem = build_problem(alone, losses(table), None)
    wide = problem.limited("wide tensors", "tensors", 3, lambda _, choice: int(choice.format.bits > 6))
    picks = solve(wide.program()).picks
    assert sum(f.bits > 6 for f in wide.picked_formats(picks).values()) == 3
    best = solve(problem.program())
    limited = Ceiling("loss", losses(table), 10 * best.objective).applied(problem, table.model)
    small = solve(limited.smallest_program())
    assert problem.program().value(small.picks) <= 10 * best.objective
    capped: Problem = replace(problem, limit_bytes=problem.picked_bytes(small.picks) - 1)
    assert solve(capped.program()).objective > 10 * best.objective


def test_another_metric_is_minimized_and_the_promise_stays_the_kl(fixed: FixedBytes) -> None:
    table = make_table()
    # the other way round than the KL: early tensors matter most
    order = [spec.name for spec in table.model.tensors]
    rows = []
    for m in table.measurements:
        share = 0.1 * 4.0 ** (4 - QuantFormat.parse(m.format).bits) / (1 + order.index(m.tensor))
        rows.append(replace(m, top1=1 - share, cosine=1 - share / 2))
    table = replace(table, measurements=tuple(rows), joint=(JointPoint("normal", 1e-3, 2e-3),))
    by_kl = make_plan(table, Budget.parse("7bpw"), fixed)
    for metric in (Metric("top1"), Metric("cosine")):
        plan = make_plan(table, Budget.parse("7bpw"), fixed, rules=Rules(metric=metric))
        assert plan.formats != by_kl.formats
        flips = {(m.tensor, m.format): 1 - (m.top1 or 0) for m in table.measurements}
        ours, theirs = (sum(flips[n, f.name] for n, f in p.formats.items()) for p in (plan, by_kl))
        assert ours < theirs
        assert plan.predicted_nats == pytest.approx(2 * math.fsum(t.loss_nats for t in plan.tensors))
        assert plan.predicted_nats > by_kl.predicted_nats
        assert plan.given.metric == metric.value
        assert Rules.of(plan).metric is metric
    assert by_kl.solver.objective_nats == pytest.approx(by_kl.predicted_nats / 2)


def test_metrics_of_one_loss() -> None:
    table = make_table()
    loss = Loss(0.0, kl_nats=0.01, kl_p99_nats=0.2, top1=0.9, nll_nats=3.25, sqnr_db=20.0, cosine=0.99)
    values = {metric.value: loss_of(metric, table)("x", "int4", loss) for metric in Metric}
    exact = {"kl": 0.01, "kl-p99": 0.2, "top1": 0.1, "perplexity": 0.25, "sqnr": 0.01, "cosine": 0.01}
    assert values == pytest.approx(exact)
    assert loss_of(Metric("perplexity"), table)("x", "int4", replace(loss, nll_nats=2.9)) == 0
    estimate = replace(loss, kl_p99_nats=None, top1=None, nll_nats=None, source="gradient")
    assert loss_of(Metric("sqnr"), table)("x", "int4", estimate) == pytest.approx(0.01)
    with pytest.raises(InputError, match=r"--metric top1: x in int4 is an estimate .* analyze with --effort thorough"):
        loss_of(Metric("top1"), table)("x", "int4", estimate)


def test_the_uniform_export_may_ship_less_than_a_plan(table: SensitivityTable, fixed: FixedBytes) -> None:
    lean = replace(fixed, graph=fixed.graph - 1000)
    rules = Rules(uniform_fixed=lean)
    assert not rules.restricts
    assert Rules(logits_bits=0).restricts
    plan = make_plan(table, Budget.parse("int8"), fixed, rules=rules)
    assert plan.budget_bytes == make_plan(table, Budget.parse("int8"), lean).budget_bytes
    assert plan.files.total <= plan.budget_bytes
    assert plan.files.graph == fixed.graph
    assert next(point for point in plan.uniform if point.name == "int8").total_bytes == plan.budget_bytes
