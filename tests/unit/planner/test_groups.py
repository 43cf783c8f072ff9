"""Tensors that share one format."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest

from qplan.card import ModelCard
from qplan.cost.file_bytes import FixedBytes
from qplan.errors import InputError
from qplan.formats import INT8
from qplan.planner.budget import Budget
from qplan.planner.groups import make_groups
from qplan.planner.planning import make_plan
from qplan.planner.rules import Rules
from qplan.run.table import SensitivityTable
from qplan.tensors import Role
from tests.support.invented_run import qwen_tensors, sensitivity

QWEN = sensitivity(qwen_tensors(2, 128, 64, 192, 512), ("fp16", "int8", "int4")).model


def test_fused_groups_are_those_that_read_the_same_input() -> None:
    groups = make_groups(QWEN, fused=True)
    assert [group.name for group in groups[:4]] == [
        "model.layers.0.self_attn.q_proj+k_proj+v_proj",
        "model.layers.0.self_attn.o_proj",
        "model.layers.0.mlp.gate_proj+up_proj",
        "model.layers.0.mlp.down_proj",
    ]
    assert [m.name for group in groups for m in group.members] != []
    assert {m.name for group in groups for m in group.members} == {spec.name for spec in QWEN.tensors}


def test_patterns_join_over_the_model_or_per_layer(table: SensitivityTable) -> None:
    everywhere = make_groups(table.model, ["*.up_proj"])
    assert sum(len(group.members) > 1 for group in everywhere) == 1
    assert next(len(group.members) for group in everywhere if len(group.members) > 1) == 4
    each = make_groups(table.model, ["{layer}.mlp.*"])
    assert [len(group.members) for group in each] == [1, 2] * 4 + [1]
    assert make_groups(table.model) == make_groups(table.model, [], fused=False)


@pytest.mark.parametrize(
    ("patterns", "fused", "problem"),
    [
        (["*.experts.*"], False, "--group '\\*.experts.\\*' matches no tensor; similar names"),
        (["lm_head"], False, "matches only lm_head"),
        (["0.mlp.*", "*.up_proj"], False, "model.layers.0.mlp.up_proj is in two groups"),
        ([], True, "no q/k/v or gate/up to fuse, its tensors are down_proj"),
    ],
)
def test_groups_that_mean_nothing(patterns: list[str], *, fused: bool, problem: str, table: SensitivityTable) -> None:
    with pytest.raises(InputError, match=problem):
        make_groups(table.model, patterns, fused=fused)


def _mixture() -> ModelCard:
    """Two layers with three experts each."""
    specs = list(QWEN.tensors)
    for layer, number, kind in product((0, 1), range(3), ("gate_up_proj", "down_proj")):
        name, op = f"model.layers.{layer}.mlp.experts.{number}.{kind}", f"/expert/{layer}_{number}/{kind}_linear"
        specs.append(replace(specs[0], name=name, op_name=op, layer=layer, kind=kind, role=Role.EXPERT))
    return replace(QWEN, tensors=tuple(specs))


def test_experts_of_a_layer_share_a_format_unless_told_otherwise() -> None:
    card = _mixture()
    groups = {group.name: [member.expert for member in group.members] for group in make_groups(card)}
    assert groups["model.layers.1.mlp.experts.*.down_proj"] == [0, 1, 2]
    assert groups["model.layers.0.mlp.experts.*.gate_up_proj"] == [0, 1, 2]
    each = make_groups(card, ["{layer}.mlp.experts.{expert}.{kind}"])
    assert all(len(group.members) == 1 for group in each)
    assert len(each) == len(card.tensors)
    whole = {group.name: len(group.members) for group in make_groups(card, ["{layer}.mlp.experts.{expert}.*"])}
    assert whole["1.mlp.experts.2.*"] == 2
    # one expert apart, the others stay together
    names = {group.name: len(group.members) for group in make_groups(card, ["1.mlp.experts.0.{kind}"])}
    assert names["1.mlp.experts.0.down_proj"] == 1
    assert names["model.layers.1.mlp.experts.*.down_proj"] == 2
    assert names["model.layers.0.mlp.experts.*.down_proj"] == 3


def test_a_plan_keeps_groups_together_and_remembers_its_rules(table: SensitivityTable, fixed: FixedBytes) -> None:
    rules = Rules(pins={"*.0.*.q_proj": INT8}, min_bits={"lm_head": 8}, group_patterns=("{layer}.mlp.*",))
    plan = make_plan(table, Budget.parse("int8"), fixed, rules=rules)
    for layer in range(4):
        assert len({t.format for t in plan.tensors if t.layer == layer and t.kind != "q_proj"}) == 1
    assert Rules.of(plan) == rules
    free = make_plan(table, Budget.parse("int8"), fixed)
    assert plan.predicted_nats >= free.predicted_nats
