"""plan.json: written, edited by people, read again."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qplan.cost.file_bytes import FixedBytes
from qplan.errors import InputError, StaleArtifactError
from qplan.formats import INT4, QuantFormat
from qplan.notes import note
from qplan.planner.budget import Budget
from qplan.planner.planning import make_plan
from qplan.planner.validate import recount, validate_plan
from qplan.run.decode import JsonText
from qplan.run.plan import Plan, Tuning
from qplan.run.table import SensitivityTable


@pytest.fixture
def plan(table: SensitivityTable, fixed: FixedBytes) -> Plan:
    return make_plan(table, Budget.parse("int8"), fixed)


@pytest.fixture
def path(plan: Plan, tmp_path: Path) -> Path:
    plan.write(tmp_path / "plan.json")
    return tmp_path / "plan.json"


def edit(path: Path, old: str, new: str) -> int:
    """Replace the first occurrence of a text; return its line."""
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    return text[: text.index(old)].count("\n") + 1


def test_round_trip(plan: Plan, path: Path, table: SensitivityTable) -> None:
    assert Plan.read(path) == plan
    validate_plan(plan, table.model, path)


@pytest.mark.parametrize("ships", [True, False])
def test_a_tuned_plan_predicts_what_it_ships_with_and_gives_that_back(plan: Plan, path: Path, *, ships: bool) -> None:
    told = Tuning("sequential", ships=ships, head=False, tokens=2048, before_nats=0.02, after_nats=0.015)
    tuned = plan.tuned(told)
    tuned.write(path)
    assert Plan.read(path) == tuned
    assert tuned.predicted_nats == pytest.approx(plan.predicted_nats * (0.75 if ships else 1))
    assert len(tuned.notes) == len(plan.notes) + 1
    back = tuned.untuned()
    assert replace(back, predicted_nats=plan.predicted_nats) == plan == plan.untuned()
    assert back.predicted_nats == pytest.approx(plan.predicted_nats)


def test_an_edited_plan_has_no_tuned_integers(plan: Plan, table: SensitivityTable, fixed: FixedBytes) -> None:
    told = Tuning("sequential", ships=True, head=True, tokens=2048, before_nats=0.02, after_nats=0.015)
    tuned = plan.tuned(told)
    assert recount(tuned, table, fixed) == tuned
    first = replace(
        tuned.tensors[0], format=next(f for f in table.formats_of(plan.tensors[0].name) if f != plan.tensors[0].format)
    )
    edited = replace(tuned, tensors=(first, *tuned.tensors[1:]))
    again = recount(edited, table, fixed)
    assert again.tuning is None
    assert again.predicted_nats == recount(replace(plan, tensors=edited.tensors), table, fixed).predicted_nats
    assert "integers-tuned" not in {known.code for known in again.notes}


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ('"format": "', '"format": "tiny', r"tensors\[0\].format: format 'tiny.*' is not understood"),
        ('"weights": 16384', '"weights": "many"', r'tensors\[0\].weights: expected a whole number, found "many"'),
        ('"weights": 16384', '"weights": true', r"tensors\[0\].weights: expected a whole number, found true"),
        ('"weights": 16384', '"weights": 0', r"tensors\[0\].weights: 0 weights: must be positive"),
        ('"layer": 0', '"layer": 0.5', r"tensors\[0\].layer: expected a whole number, found 0.5"),
        ('"op_name"', '"opname"', r"tensors\[0\].opname: unknown field; the fields here are name, op_name"),
        ('"at_least_mean": true', '"at_least_mean": 1', "logits.at_least_mean: expected true or false, found 1"),
        ('"predicted_nats": 0', '"predicted_nats": NaN, "x": 0', "predicted_nats"),
        ('"memory": "normal"', '"memory": "high"', 'memory: expected one of low, normal, found "high"'),
        ('"precision": "low"', '"precision": "lo"', 'precision: expected one of low, normal, high, found "lo"'),
        ('"budget": "int8"', '"budget": ["int8"]', "budget: expected a text, found a list"),
    ],
)
def test_errors_name_line_and_field(path: Path, old: str, new: str, problem: str) -> None:
    line = edit(path, old, new)
    with pytest.raises(InputError, match=f"plan.json, line {line}, .*{problem}"):
        Plan.read(path)


def test_a_plan_of_before_dynamic_options_has_a_scale_per_token(plan: Plan, path: Path) -> None:
    document = json.loads(path.read_text())
    del document["dynamic_option"]
    path.write_text(json.dumps(document | {"schema": 1}))
    assert Plan.read(path) == plan
    path.write_text(json.dumps(document | {"dynamic_option": 1}))
    with pytest.raises(InputError, match=r"line 1, dynamic_option: expected one of 0, 2, found 1"):
        Plan.read(path)


def test_missing_parts(path: Path) -> None:
    document = json.loads(path.read_text())
    del document["tensors"][3]["bytes"]
    path.write_text(json.dumps(document))
    with pytest.raises(InputError, match=r"line 1, tensors\[3\]: the field 'bytes' is missing"):
        Plan.read(path)
    path.write_text(json.dumps(document | {"tensors": []}))
    with pytest.raises(InputError, match="holds no tensors"):
        Plan.read(path)
    path.write_text(json.dumps(document | {"tensors": {}}))
    with pytest.raises(InputError, match="tensors: expected a list, found an object"):
        Plan.read(path)
    path.write_text(json.dumps(document | {"schema": 99}))
    with pytest.raises(StaleArtifactError):
        Plan.read(path)


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ('"model.layers.0.mlp.up_proj"', '"model.layers.0.mlp.up_porj"', "did you mean model.layers.0.mlp.up_proj"),
        ('"model.layers.0.mlp.up_proj"', '"model.layers.0.self_attn.q_proj"', "planned twice"),
        ('"/lm/lm_head/Linear"', '"/lm_head"', "is not the op of lm_head"),
        ('"weights": 16384', '"weights": 16385', "has 16384"),
    ],
)
def test_plans_that_do_not_fit_the_model(path: Path, old: str, new: str, problem: str, table: SensitivityTable) -> None:
    line = edit(path, old, new)
    with pytest.raises(InputError, match=f"line {line}, .*{problem}"):
        validate_plan(Plan.read(path), table.model, path)


def with_format(plan: Plan, name: str, fmt: QuantFormat) -> Plan:
    return replace(plan, tensors=tuple(replace(t, format=fmt) if t.name == name else t for t in plan.tensors))


def test_illegal_formats_and_missing_tensors(plan: Plan, table: SensitivityTable) -> None:
    with pytest.raises(InputError, match=r"int3 is not legal for lm_head.*use int4, int8, fp16"):
        validate_plan(with_format(plan, "lm_head", QuantFormat(3)), table.model)
    with pytest.raises(InputError, match="blocks of 128 do not divide rows of 192"):
        validate_plan(with_format(plan, "model.layers.0.mlp.down_proj", QuantFormat(4, 128)), table.model)
    with pytest.raises(InputError, match=r"lacks lm_head \(1 of 13"):
        validate_plan(replace(plan, tensors=plan.tensors[:-1]), table.model)
    with pytest.raises(StaleArtifactError, match="other weights"):
        validate_plan(replace(plan, model_sha256="0"), table.model)


def test_recount(plan: Plan, table: SensitivityTable, fixed: FixedBytes) -> None:
    assert recount(plan, table, fixed) == plan
    name = next(t.name for t in plan.tensors if t.format != INT4 and t.kind == "q_proj")
    edited = recount(with_format(plan, name, INT4), table, fixed)
    changed = next(t for t in edited.tensors if t.name == name)
    assert changed.bytes == table.model.tensor(name).bytes_in(INT4)
    assert changed.loss_nats == table.losses()[name]["int4"].kl_nats
    assert edited.files.total < plan.files.total
    assert edited.solver.status == "edited"
    with pytest.raises(InputError, match="int2 was not measured, only fp16, int8, int6, int4"):
        recount(with_format(plan, name, QuantFormat(2)), table, fixed)
    small = replace(plan, budget_bytes=1)
    assert any(
        "over the budget of 1" in str(note) for note in recount(with_format(small, name, INT4), table, fixed).notes
    )


JSON = st.recursive(
    st.none() | st.integers(-9, 9) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=12,
)


@given(JSON, st.sampled_from([None, 1, 4]))
def test_lines_of_any_value(value: object, indent: int | None) -> None:
    text = json.dumps(value, indent=indent, ensure_ascii=False)
    source = JsonText("x", text)

    def walk(value: object, path: tuple[str | int, ...]) -> None:
        line = source.line(*path)
        rest = "\n".join(text.split("\n")[line - 1 :])
        opening = (
            json.dumps(value, ensure_ascii=False)[0]
            if isinstance(value, list | dict)
            else json.dumps(value, ensure_ascii=False)
        )
        assert opening in rest.split("\n")[0]
        items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        for key, inner in items:
            walk(inner, (*path, key))

    walk(value, ())


def test_notes_of_before_codes_are_texts(plan: Plan, path: Path) -> None:
    document = json.loads(path.read_text())
    told = ["the graph file's size is an estimate; build the model for the exact bytes"]
    path.write_text(json.dumps(document | {"schema": 2, "notes": told}))
    read = Plan.read(path)
    assert list(map(str, read.notes)) == told
    read.write(path)
    assert json.loads(path.read_text())["notes"] == told
    assert Plan.read(path) == read


def test_a_note_that_is_none_is_named_with_its_line(plan: Plan, path: Path) -> None:
    plan.noted(note("budget-above-fp16")).write(path)
    line = edit(path, '"code": "budget-above-fp16"', '"code": 3')
    with pytest.raises(InputError, match=rf"line {line - 1}, notes\[\d+\]: expected a text, or an object with"):
        Plan.read(path)
