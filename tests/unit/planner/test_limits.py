"""Several budgets and limits at once, other objectives, and what is said where nothing fits."""

from __future__ import annotations

import itertools
import math
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qplan.cost.file_bytes import FixedBytes, file_bytes
from qplan.cost.target import find_target
from qplan.errors import InfeasibleError
from qplan.formats import QuantFormat
from qplan.planner.budget import Budget, parse_budgets
from qplan.planner.ceiling import Ceiling
from qplan.planner.explain import explain_all
from qplan.planner.limits import Cost, ResourceLimit
from qplan.planner.planning import make_plan
from qplan.planner.rules import Rules
from qplan.run.table import SensitivityTable
from qplan.tensors import TensorSpec
from tests.support.invented_table import make_table

FILES = Cost("file size", "MB", 10**6, lambda spec, fmt: spec.bytes_in(fmt))
RAM = Cost("RAM", "MB", 10**6, lambda spec, fmt: find_target("cpu-x86").ram_bytes(spec, fmt))


def invented_ns(spec: TensorSpec, fmt: QuantFormat) -> int:
    """Not monotone in bits: 6 bits are slower than 8, as on x86."""
    return spec.weights * {4: 5, 6: 11, 8: 9, 16: 30}[fmt.bits] // 10 - spec.weights


TIME = Cost("decode time", "ms", 10**6, invented_ns, 2 * 10**6)


def test_the_tightest_of_several_budgets_counts(table: SensitivityTable, fixed: FixedBytes) -> None:
    assert (
        make_plan(table, parse_budgets(["int8", "9bpw", "90%"]), fixed).formats
        == make_plan(table, Budget.parse("int8"), fixed).formats
    )
    tight = make_plan(table, parse_budgets(["int8", "60%", "6bpw"]), fixed)
    assert tight.files.total <= min(
        make_plan(table, Budget.parse(b), fixed).budget_bytes for b in ("int8", "60%", "6bpw")
    )


def test_limits_hold_together_and_are_recorded(table: SensitivityTable, fixed: FixedBytes) -> None:
    free = make_plan(table, Budget.parse("int8"), fixed)
    ram, time = RAM.total(table.model, free.formats), TIME.total(table.model, free.formats)
    limits = [ResourceLimit(RAM, ram * 0.8), ResourceLimit(TIME, time * 0.98)]
    plan = make_plan(table, Budget.parse("int8"), fixed, ceilings=limits)
    assert plan.solver.status == "optimal"
    assert plan.predicted_nats > free.predicted_nats
    for limit, recorded in zip(limits, plan.limits, strict=True):
        assert (recorded.name, recorded.limit) == (limit.name, limit.limit)
        assert recorded.predicted == limit.cost.total(table.model, plan.formats) <= limit.limit


@settings(max_examples=40, deadline=None)
@given(st.floats(0.0, 1.0), st.sampled_from([FILES, TIME, RAM]), st.integers(0, 8))
def test_smallest_and_fastest_are_exact(share: float, cost: Cost, logits_bits: int) -> None:
    table = make_table(("fp16", "int8", "int4"), layers=1)
    card, losses, rules = table.model, table.kl("normal"), Rules(logits_bits=logits_bits)
    fixed = FixedBytes(0, 0, 20_000, exact=True)
    ends = [sum(f(row.values()) for row in losses.values()) for f in (min, max)]
    most = math.exp((1 - share) * math.log(ends[0]) + share * math.log(ends[1]))
    plan = make_plan(table, (), fixed, rules=rules, ceilings=[Ceiling("KL", losses, most)], minimize=cost)

    def total(formats: dict[str, QuantFormat]) -> float:
        return math.fsum(losses[name][fmt.name] for name, fmt in formats.items())

    def allowed(formats: dict[str, QuantFormat]) -> bool:
        others = [spec for spec in card.tensors if spec.name != "lm_head"]
        mean = sum(formats[s.name].bits * s.weights for s in others) / sum(s.weights for s in others)
        return not logits_bits or formats["lm_head"].bits >= max(logits_bits, mean)

    names = [spec.name for spec in card.tensors]
    every = itertools.product(*(table.formats_of(name) for name in names))
    within = [
        formats
        for picks in every
        if total(formats := dict(zip(names, picks, strict=True))) <= most * (1 + 1e-9) and allowed(formats)
    ]
    least = min(cost.total(card, formats) for formats in within)
    assert cost.total(card, plan.formats) == pytest.approx(least, rel=1e-12)
    best = min(total(formats) for formats in within if cost.total(card, formats) <= least * (1 + 1e-12))
    assert total(plan.formats) == pytest.approx(best, rel=1e-9)
    assert plan.objective == cost.name
    assert plan.files == file_bytes(card, plan.formats, fixed)
    assert plan.budget_bytes == plan.files.total


def test_explanations_know_what_a_limit_is_worth(table: SensitivityTable, fixed: FixedBytes) -> None:
    ram = RAM.total(table.model, make_plan(table, Budget.parse("int8"), fixed).formats) * 0.8
    limits = [ResourceLimit(RAM, ram)]
    plan = make_plan(table, Budget.parse("int8"), fixed, ceilings=limits)
    (one,) = explain_all(table, plan, ["model.layers.0.mlp.up_proj"], limits=limits)
    assert list(one.other_prices) == ["RAM, per MB"]
    assert one.price_nats_per_byte == 0
    looser = make_plan(table, Budget.parse("int8"), fixed, ceilings=[ResourceLimit(RAM, ram + 0.02)])
    gained = plan.predicted_nats - looser.predicted_nats
    assert gained == pytest.approx(0.02 * one.other_prices["RAM, per MB"], rel=0.5)


def test_infeasible_limits_name_the_nearest_value(table: SensitivityTable, fixed: FixedBytes) -> None:
    with pytest.raises(InfeasibleError) as alone:
        make_plan(table, (), fixed, ceilings=[ResourceLimit(RAM, 0.01)])
    near = re.search(r"no plan satisfies RAM <= 0.01 MB; the nearest is RAM ([\d.]+) MB", str(alone.value))
    assert near is not None
    plan = make_plan(table, (), fixed, ceilings=[ResourceLimit(RAM, float(near[1]))])
    assert RAM.total(table.model, plan.formats) <= float(near[1])
    tight = make_plan(table, Budget.parse("int4"), fixed).predicted_nats / 10
    ceiling = Ceiling("KL", table.kl("normal"), tight)
    with pytest.raises(InfeasibleError) as both:
        make_plan(table, Budget.parse("int4"), fixed, ceilings=[ceiling])
    said = str(both.value)
    assert "together" in said
    size = re.search(r"a budget of [\d.]+ MB \(([\d,]+) bytes\) instead of int4", said)
    loss = re.search(r"KL ([\d.e-]+) nats instead of", said)
    assert size is not None
    assert loss is not None
    make_plan(table, Budget.parse(f"{size[1].replace(',', '')}B"), fixed, ceilings=[ceiling])
    make_plan(table, Budget.parse("int4"), fixed, ceilings=[Ceiling("KL", table.kl("normal"), float(loss[1]))])


def test_a_budget_below_everything_is_said_first(table: SensitivityTable, fixed: FixedBytes) -> None:
    with pytest.raises(InfeasibleError, match="budget 1kB is below the smallest plan"):
        make_plan(table, Budget.parse("1kB"), fixed, ceilings=[ResourceLimit(RAM, 10.0)])
