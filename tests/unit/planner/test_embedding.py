"""An untied embedding in the planning problem: its bytes and its RAM count, its width does not."""

from __future__ import annotations

from dataclasses import replace

import pytest

from qplan.card import ModelCard
from qplan.choosing.retarget import retarget_table
from qplan.cost.file_bytes import FixedBytes, file_bytes
from qplan.cost.target import find_target, target_names
from qplan.errors import InputError
from qplan.formats import FP16, INT4, INT8, QuantFormat
from qplan.mnn.engines import EngineTarget, EngineVersion
from qplan.planner.budget import Budget
from qplan.planner.groups import make_groups
from qplan.planner.planning import make_plan
from qplan.planner.rules import Rules
from qplan.planner.validate import validate_plan
from qplan.run.measurement import PARTS
from qplan.run.plan import Plan
from qplan.run.table import SensitivityTable
from qplan.tensors import Role, TensorSpec
from qplan.uniform import uniform_formats
from tests.support.invented_table import make_table

NAME = "model.embed_tokens"
SPEC = TensorSpec(NAME, "", None, "embed_tokens", Role.EMBEDDING, 512, 128, bias=False)
LOSSES = {"fp16": 1e-7, "int8-b0-s32": 1e-5, "int8-s32": 8e-6, "int4-b0-s32": 0.06, "int4-s32": 0.05}
FIXED = FixedBytes(4000, 0, 20_000, exact=True)


def untied(losses: dict[str, float] | None = None) -> SensitivityTable:
    table = make_table(("fp16", "int8-b0", "int8", "int6", "int4-b0", "int4"), tied=False)
    first = table.measurements[0]
    rows = [
        replace(first, tensor=NAME, format=name, kl_nats=nats, **dict.fromkeys(PARTS, 0.0))  # type: ignore[arg-type]
        for name, nats in (losses or LOSSES).items()
    ]
    return replace(table, model=replace(table.model, embedding=SPEC), measurements=(*rows, *table.measurements))


def planned(budget: str, rules: Rules | None = None, losses: dict[str, float] | None = None) -> Plan:
    return make_plan(untied(losses), Budget.parse(budget), FIXED, rules=rules)


def test_its_formats_are_those_of_its_own_file() -> None:
    assert SPEC.resolve(INT8).name == "int8-s32"
    assert SPEC.resolve(QuantFormat.parse("int4-b96-sym")).name == "int4-b0-s32"
    assert SPEC.resolve(FP16) == FP16
    allowed = [name for name in ("fp16", "int8-s32", "int4-b0-s32", "int8", "int6-s32", "int2-s32") if _allows(name)]
    assert allowed == ["fp16", "int8-s32", "int4-b0-s32"]
    assert SPEC.bytes_in(FP16) == 2 * 512 * 128
    assert SPEC.bytes_in(QuantFormat.parse("int8-b0-s32")) == 512 * 128 + 512 * 8
    assert SPEC.bytes_in(QuantFormat.parse("int4-s32")) == 512 * 64 + 2 * 512 * 8
    menu = untied().model.embedding_formats([INT8, QuantFormat.parse("int6"), QuantFormat(4, 4), INT4])
    assert [fmt.name for fmt in menu] == ["fp16", "int8-s32", "int4-s32"]


def _allows(name: str) -> bool:
    return SPEC.allows(QuantFormat.parse(name))


@pytest.mark.parametrize("target", target_names())
def test_it_takes_ram_for_scales_alone_and_no_time(target: str) -> None:
    found = find_target(target)
    for memory in ("low", "normal"):
        assert found.ram_bytes(SPEC, FP16, memory) == 0
        assert found.ram_bytes(SPEC, QuantFormat.parse("int4-s32"), memory) == 2 * 512 * 8
        assert found.decode_bytes(SPEC, INT8, memory) == found.prefill_work(SPEC, INT8, memory) == 0
    assert found.legal(SPEC, QuantFormat.parse("int8-b0-s32"))
    assert not found.legal(SPEC, QuantFormat.parse("int6-s32"))


def test_a_plan_gives_it_the_format_with_which_all_lose_least() -> None:
    plan = planned("int4")
    every = [planned("int4", Rules(pins={NAME: QuantFormat.parse(name)})) for name in LOSSES]
    assert plan.formats[NAME].bits == 8
    assert plan.predicted_nats == pytest.approx(min(other.predicted_nats for other in every))
    assert plan.files.embedding == SPEC.bytes_in(plan.formats[NAME])
    assert plan.files.total <= file_bytes(untied().model, uniform_formats(untied().model, 4), FIXED).total
    # were nothing lost by 4 bits, it would get these
    assert planned("int4", losses=LOSSES | {"int4-b0-s32": 1e-6}).formats[NAME].name == "int4-b0-s32"


def test_uniform_exports_keep_it_at_16_bits() -> None:
    assert uniform_formats(untied().model, 4)[NAME] == FP16
    assert {point.name for point in planned("int4").uniform} == {"fp16", "int8", "int4"}


def test_a_pin_names_its_width() -> None:
    assert planned("int8", Rules(pins={"*embed_tokens": INT4})).formats[NAME].name == "int4-s32"
    assert planned("int4", Rules(min_bits={"*embed_tokens": 16})).formats[NAME] == FP16
    with pytest.raises(InputError, match=r"embed_tokens is pinned to int6; .*tokens are looked up in 4, 8 or 16 bits"):
        planned("int8", Rules(pins={"*embed_tokens": QuantFormat.parse("int6")}))


@pytest.mark.parametrize("pattern", ["*embed*", "embed_tokens"])
def test_it_shares_no_format(pattern: str) -> None:
    with pytest.raises(InputError, match=r"only model\.embed_tokens: an untied embedding has formats of its own"):
        make_groups(untied().model, [pattern])
    with pytest.raises(InputError, match="matches no tensor"):
        make_groups(untied().model, ["*embedding*"])


def test_it_does_not_raise_what_the_head_must_reach() -> None:
    # at 16 bits it would hold the mean width of the others above 8
    plan = planned("int8", Rules(pins={"*embed_tokens": FP16, "lm_head": INT8}))
    assert plan.formats["lm_head"] == INT8
    assert plan.formats[NAME] == FP16


def test_a_plan_must_hold_it_in_a_format_that_can_be_looked_up() -> None:
    table = untied()
    plan = planned("int4")
    validate_plan(plan, table.model)
    with pytest.raises(InputError, match=r"lacks model.embed_tokens: plans that were made before.*qplan emit"):
        validate_plan(replace(plan, tensors=plan.tensors[1:]), table.model)
    wrong = replace(plan.tensors[0], format=INT8)
    with pytest.raises(InputError, match=r"looked up in 4, 8 or 16 bits.*int4-b0-s32, int8-b0-s32, fp16"):
        validate_plan(replace(plan, tensors=(wrong, *plan.tensors[1:])), table.model)


def test_other_engines_get_the_same_formats() -> None:
    table = untied()
    for version in ("3.6.1", "3.4.0"):
        found = retarget_table(table, EngineTarget.of(EngineVersion.parse(version)))
        assert found.formats_of(NAME) == table.formats_of(NAME)


def test_models_of_earlier_versions_read_as_they_were() -> None:
    model = make_table(tied=False).model
    assert "embedding" not in model.to_json()
    assert ModelCard.from_json(model.to_json()) == model
    assert ModelCard.from_json(untied().model.to_json()) == untied().model
    plan = make_plan(make_table(tied=False), Budget.parse("int4"), replace(FIXED, embedding=2 * 512 * 128))
    assert plan.files.embedding == 2 * 512 * 128
    assert NAME not in plan.formats
