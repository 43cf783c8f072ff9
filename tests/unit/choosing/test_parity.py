"""Budgets that name a uniform export: no plan takes more of anything than that export, whatever table and target."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qplan.choosing.parity import parity_limits, promised, runnable_uniform
from qplan.choosing.request import PlanRequest, limits_of
from qplan.choosing.solving import solved
from qplan.cost.file_bytes import estimate_fixed, file_bytes
from qplan.cost.target import target_names
from qplan.errors import InfeasibleError
from qplan.formats import FP16, INT8, Formats, QuantFormat
from qplan.planner.budget import Budget, parse_budgets
from qplan.planner.planning import make_plan
from qplan.planner.rules import Rules
from qplan.planner.size import Size
from qplan.planner.validate import recount
from qplan.run.folder import RunFolder
from qplan.run.plan import Plan
from qplan.run.profile import DeviceProfile, OpTime
from qplan.run.table import SensitivityTable
from qplan.tensors import Role
from qplan.uniform import uniform_formats
from tests.support.invented_run import qwen_tensors, sensitivity

NAMES = ("fp16", "int8", "int8-b0", "int6", "int5-b0", "int4", "int4-b0", "int3", "int2-b0")
NO_RUN = RunFolder(Path("none"))
RUNNABLE = tuple(name for name in target_names() if name != "npu-hexagon")


def plan_of(table: SensitivityTable, budget: str, *, run: RunFolder = NO_RUN, **rules: Any) -> Plan:
    wanted = PlanRequest(budgets=parse_budgets([budget]), rules=Rules.parse(**rules))
    return solved(run, table, estimate_fixed(table.model), wanted, unfolded=None)


def times_of(plan: Plan, table: SensitivityTable, formats: Formats) -> tuple[int, float, float]:
    """RAM, decode and prefill of formats on the plan's target, added up by hand."""
    target = Rules.of(plan).target
    ram, decode, prefill = 0, 0.0, 0.0
    for spec in table.model.tensors:
        fmt = formats[spec.name]
        ram += target.ram_bytes(spec, fmt, table.goal)
        decode += target.decode_bytes(spec, fmt, table.goal)
        prefill += target.prefill_work(spec, fmt, table.goal) / (128 if spec.role is Role.HEAD else 1)
    return ram, decode, prefill


@settings(max_examples=20, deadline=None)
@given(
    st.sampled_from(RUNNABLE),
    st.sampled_from(["int8", "int6", "int5", "int4", "fp16"]),
    st.lists(st.sampled_from(NAMES), min_size=2, unique=True),
    st.sampled_from([128, 172, 192]),
    st.integers(1, 2),
)
def test_no_plan_takes_more_of_anything(target: str, budget: str, more: list[str], hidden: int, layers: int) -> None:
    # the export's own width is offered, in blocks or by whole rows, and a head of 8 bits: it must always be feasible
    offered = tuple(dict.fromkeys(("int8", "fp16" if budget == "fp16" else budget, *more)))
    table = sensitivity(qwen_tensors(layers, hidden, 64, 2 * hidden, 512), offered, batches=1)
    plan = plan_of(table, budget, target=target)
    bits = Budget.parse(budget).bits or 0
    uniform = uniform_formats(table.model, bits)
    fixed = estimate_fixed(table.model)
    assert plan.files.total <= file_bytes(table.model, uniform, fixed).total
    yardstick = runnable_uniform(table, Rules.of(plan), bits)
    assert yardstick is not None
    for mine, its in zip(times_of(plan, table, plan.formats), times_of(plan, table, yardstick), strict=True):
        assert mine <= its * (1 + 1e-6)
    assert plan.parity == "all"
    assert {limit.of for limit in plan.limits} == {budget}
    assert all(limit.predicted <= limit.limit for limit in plan.limits)


@pytest.fixture(scope="module")
def table() -> SensitivityTable:
    return sensitivity(qwen_tensors(2, 256, 64, 704, 1024), NAMES, batches=1)


def test_parity_files_is_what_a_budget_meant_before(table: SensitivityTable) -> None:
    prices = []
    for budget in ("int8", "int4"):
        before = make_plan(table, Budget.parse(budget), estimate_fixed(table.model))
        plan = plan_of(table, budget, parity="files")
        assert (plan.formats, plan.limits, plan.parity) == (before.formats, (), "files")
        prices.append(plan_of(table, budget).predicted_nats - plan.predicted_nats)
    assert min(prices) >= 0
    assert max(prices) > 0


def test_other_budgets_limit_files_alone_and_the_plan_tells_the_rest(table: SensitivityTable) -> None:
    for budget in ("5bpw", "1.2MB", "45%"):
        plan = plan_of(table, budget)
        assert not plan.limits
        assert plan.footprint is not None
        ram, decode, prefill = times_of(plan, table, plan.formats)
        assert plan.footprint.ram_bytes == ram
        assert (plan.footprint.decode, plan.footprint.prefill) == pytest.approx((decode, prefill))
        assert all(point.footprint is not None for point in plan.uniform)


def test_of_several_budgets_and_limits_the_lowest_count(table: SensitivityTable) -> None:
    both = PlanRequest(budgets=parse_budgets(["int8", "int4", "3MB"]))
    assert {limit.of for limit in both.limits(table, NO_RUN)} == {"int4"}
    tight = replace(both, max_ram=Size.parse("10kB", "--max-ram")).limits(table, NO_RUN)
    assert [(limit.name, limit.of) for limit in tight] == [
        ("RAM", ""),
        ("relative decode time", "int4"),
        ("relative prefill time", "int4"),
    ]


def test_a_plans_record_gives_its_limits_again(table: SensitivityTable) -> None:
    plan = plan_of(table, "int4", target="arm-dot")
    again = limits_of(plan, table, NO_RUN)
    wanted = PlanRequest(budgets=parse_budgets(["int4"]), rules=Rules.parse(target="arm-dot")).limits(table, NO_RUN)
    pairs = zip(again, wanted, strict=True)
    assert all(isinstance(one, type(two)) and one.counts == two.counts for one, two in pairs if hasattr(one, "counts"))
    assert all(limit.holds(table.model, plan.formats) for limit in wanted)


def test_an_export_that_the_target_does_not_compute_limits_files_and_says_so() -> None:
    table = sensitivity(qwen_tensors(2, 128, 64, 256, 512), ("int8", "int4", "int4-sym"), batches=1)
    rules = Rules.parse(target="npu-hexagon", logits_bits=0)
    plan = solved(
        NO_RUN,
        table,
        estimate_fixed(table.model),
        PlanRequest(budgets=parse_budgets(["int4"]), rules=rules),
        unfolded=None,
    )
    assert not plan.limits
    assert "npu-hexagon does not compute uniform int4" in " ".join(map(str, plan.notes))
    assert "int4" not in promised(rules, table, NO_RUN)


def test_what_only_files_allow_is_refused_with_the_way_out(table: SensitivityTable) -> None:
    with pytest.raises(
        InfeasibleError, match=r"RAM <= [\d.]+ MB \(uniform int4's\).*--parity files limits files alone"
    ):
        solved(
            NO_RUN,
            table,
            estimate_fixed(table.model),
            PlanRequest(budgets=parse_budgets(["int4"]), rules=Rules(pins={"*.up_proj": QuantFormat(3)})),
            unfolded=None,
        )


def test_a_profile_of_this_target_gives_milliseconds(table: SensitivityTable, tmp_path: Path) -> None:
    run, card = RunFolder(tmp_path), table.model
    formats = {QuantFormat.parse(name).name for name in ("int8", "int8-b0", "int4", "int4-b0", "fp16")}
    shapes = dict.fromkeys((s.out_features, s.in_features) for s in card.tensors)
    ops = tuple(
        OpTime(*shape, QuantFormat.parse(name).resolve(shape[1]).name, 1, *times)
        for shape in shapes
        for name in formats
        for times in [{"int8": (0.0, 0.0), "int4": (-0.2, -0.1)}.get(name.split("-")[0], (1.0, 1.0))]
    )
    profile = DeviceProfile(*("a machine", "3.6.1", "cpu-x86", "low", 1, 128, card.sha256, "int8", 40.0, 10.0), ops)
    profile.write(run.device)
    names = [limit.name for limit in parity_limits(parse_budgets(["int4"]), Rules(), table, run)]
    assert names == ["RAM", "decode time", "prefill time"]
    uniform = runnable_uniform(table, Rules(), 4)
    assert uniform is not None
    plan = plan_of(table, "int4", run=run)
    prefill, decode = profile.predict(card, plan.formats)
    most = profile.predict(card, uniform)
    assert prefill <= most[0] + 1e-5
    assert decode <= most[1] + 1e-5
    # of another target it says nothing
    elsewhere = parity_limits(parse_budgets(["int4"]), Rules.parse(target="phone"), table, run)
    assert [limit.name for limit in elsewhere][1:] == ["relative decode time", "relative prefill time"]
    replace(profile, model_sha256="other").write(run.device)
    assert "ms" not in {limit.cost.unit for limit in parity_limits(parse_budgets(["int4"]), Rules(), table, run)}


def test_experts_do_not_pay_for_what_every_token_meets(table: SensitivityTable) -> None:
    specs = tuple(
        replace(s, role=Role.EXPERT, op_name=f"/expert/{s.layer}_0/{s.kind}") if s.kind == "up_proj" else s
        for s in table.model.tensors
    )
    mixture = replace(table, model=replace(table.model, tensors=specs))
    names = [limit.name for limit in parity_limits(parse_budgets(["int4"]), Rules(), mixture, NO_RUN)]
    assert names == ["RAM", *(f"relative {p} time{of}" for p in ("decode", "prefill") for of in ("", " of experts"))]
    plan = plan_of(mixture, "int4")
    for experts in (True, False):
        shares = []
        for formats in (plan.formats, uniform_formats(mixture.model, 4)):
            of = [s for s in specs if (s.role is Role.EXPERT) == experts]
            shares.append(sum(Rules().target.decode_bytes(s, formats[s.name]) for s in of))
        assert shares[0] <= shares[1] * (1 + 1e-6)


def test_an_edited_plan_is_told_what_it_takes_beyond(table: SensitivityTable) -> None:
    plan = plan_of(table, "int4")
    wide = tuple(replace(t, format=FP16 if t.layer == 0 else INT8) for t in plan.tensors)
    edited = recount(replace(plan, tensors=wide), table, estimate_fixed(table.model))
    assert not edited.limits
    (told,) = [note for note in edited.notes if note.code == "over-parity"]
    shares = told.values["shares"]
    assert isinstance(shares, Mapping)
    assert set(shares) == {"RAM", "decode time", "prefill time"}
    assert edited.footprint is not None
    assert edited.footprint.ram_bytes == times_of(edited, table, edited.formats)[0]
