"""Looking at plans: frontier, differences, explanations."""

from __future__ import annotations

import pytest

from qplan.cost.file_bytes import FixedBytes, bits_per_weight, file_bytes
from qplan.errors import InfeasibleError, InputError
from qplan.formats import FP16, INT8, QuantFormat
from qplan.planner.budget import Budget
from qplan.planner.diff import diff
from qplan.planner.explain import explain
from qplan.planner.frontier import frontier, knees
from qplan.planner.planning import make_plan
from qplan.planner.rules import Rules
from qplan.run.table import SensitivityTable
from tests.support.invented_table import make_table


def test_frontier_falls_and_lies_below_uniform(table: SensitivityTable, fixed: FixedBytes) -> None:
    curve = frontier(table, fixed, points=12)
    sizes = [point.total_bytes for point in curve.points]
    losses = [point.predicted_nats for point in curve.points]
    assert sizes == sorted(set(sizes))
    assert losses == sorted(set(losses), reverse=True)
    assert set(curve.points[-1].formats.values()) == {FP16}
    assert any(point.knee for point in curve.points)
    for point in curve.points:
        files = file_bytes(table.model, point.formats, fixed)
        assert (files.total, bits_per_weight(files, table.model)) == (point.total_bytes, point.bpw)
        assert point.predicted_nats <= make_plan(table, Budget.of_bytes(point.total_bytes), fixed).predicted_nats * (
            1 + 1e-12
        )
    assert [point.name for point in curve.uniform] == ["int4", "int6", "int8", "fp16"]


def test_frontier_needs_points_and_plans(table: SensitivityTable, fixed: FixedBytes) -> None:
    with pytest.raises(InputError, match="1 points"):
        frontier(table, fixed, points=1)
    with pytest.raises(InfeasibleError, match="no plan of any size"):
        frontier(table, fixed, rules=Rules(pins={"model.*": FP16, "lm_head": INT8}))


def test_a_knee_is_where_the_curve_bends() -> None:
    assert knees([0, 1, 2, 3, 4, 5], [1e0, 1e-2, 1e-4, 0.9e-4, 0.8e-4, 0.7e-4]) == (2,)
    assert knees([0, 1, 2, 3], [1.0, 0.1, 0.01, 0.001]) == ()
    assert knees([0, 1], [1.0, 0.1]) == ()
    assert knees([0, 1, 2], [0.0, 0.0, 0.0]) == ()


def test_diff(table: SensitivityTable, fixed: FixedBytes) -> None:
    small, large = make_plan(table, Budget.parse("int4"), fixed), make_plan(table, Budget.parse("int8"), fixed)
    change = diff(small, large)
    assert change.comparable
    assert change.total_bytes == large.files.total - small.files.total == sum(c.bytes for c in change.changes)
    assert change.predicted_nats == pytest.approx(sum(c.loss_nats for c in change.changes))
    assert {c.name for c in change.changes} == {t.name for t in large.tensors if small.formats[t.name] != t.format}
    assert diff(small, small).changes == ()
    with pytest.raises(InputError, match="different models"):
        diff(small, make_plan(make_table(layers=2), Budget.parse("int8"), fixed))


def test_explanations_agree_with_the_price(table: SensitivityTable, fixed: FixedBytes) -> None:
    plan = make_plan(table, Budget.parse("70%"), fixed)
    explanations = [explain(table, plan, tensor.name) for tensor in plan.tensors]
    assert len({e.price_nats_per_byte for e in explanations}) == 1
    assert explanations[0].price_nats_per_byte > 0
    # the relaxation splits at most one group per binding limit: all others sit at the cheapest alternative
    at_price = [e for e in explanations if e.chosen.net_nats <= 1e-12]
    assert len(at_price) >= len(explanations) - 4
    for e in explanations:
        assert e.next_best is not None
        assert e.next_best.format != e.format
        assert e.format.name in e.sentence
        assert min(option.net_nats for option in e.alternatives) == 0
    head = explanations[-1]
    assert {option.format for option in head.alternatives} == {FP16, INT8}


def test_explain_with_pins_and_errors(table: SensitivityTable, fixed: FixedBytes) -> None:
    rules = Rules(pins={"*.0.*": INT8})
    plan = make_plan(table, Budget.parse("int8"), fixed, rules=rules)
    only = explain(table, plan, "model.layers.0.mlp.up_proj", rules=rules)
    assert only.next_best is None
    assert "no other" in only.sentence
    with pytest.raises(InputError, match=r"no tensor '.*upproj'; similar names: model\.layers\.0\.mlp\.up_proj"):
        explain(table, plan, "model.layers.0.mlp.upproj")
    with pytest.raises(InputError, match="is not among its measured and allowed formats"):
        explain(table, plan, "model.layers.0.mlp.up_proj", rules=Rules(pins={"*.0.*": QuantFormat(4)}))
