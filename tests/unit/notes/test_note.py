"""Notes: made of registered codes, stored as JSON, written as sentences."""

from __future__ import annotations

import ast
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_origin

import pytest
from hypothesis import given
from hypothesis import strategies as st

import qplan
from qplan.notes import Note, few, note, text_note
from qplan.notes.catalog import CATALOG, FieldType
from qplan.notes.sentence import ENGLISH, MISSING, places, write

PACKAGE = Path(qplan.__file__).parent

SCALARS: dict[object, st.SearchStrategy[Any]] = {
    str: st.text(),
    int: st.integers(0, 10**12),
    float: st.floats(allow_nan=False, allow_infinity=False),
}


def values_of(kind: FieldType) -> st.SearchStrategy[Any]:
    if get_origin(kind) is list:
        return st.lists(SCALARS[get_args(kind)[0]], max_size=4)
    if get_origin(kind) is dict:
        return st.dictionaries(st.text(), SCALARS[get_args(kind)[1]], max_size=4)
    return SCALARS[kind]


@st.composite
def notes(draw: st.DrawFn) -> Note:
    code = draw(st.sampled_from(sorted(CATALOG)))
    return note(code, **{name: draw(values_of(kind)) for name, kind in CATALOG[code].fields.items()})


@given(notes())
def test_notes_read_back_from_json(made: Note) -> None:
    read = Note.of_json(json.loads(json.dumps(made.to_json(), allow_nan=False)))
    assert read == made
    assert read.is_known
    assert str(read) == str(made)


@given(notes())
def test_every_note_has_a_sentence(made: Note) -> None:
    for name, value in made.values.items():
        if isinstance(value, str):
            assert value in str(made), name


@pytest.mark.parametrize("code", sorted(CATALOG))
def test_a_sentence_shows_every_field_and_no_other(code: str) -> None:
    assert places(CATALOG[code].sentence) == set(CATALOG[code].fields)


def called(name: str) -> Iterator[tuple[str, ast.Call]]:
    """Calls of a function in the product, by module."""
    for path in sorted(PACKAGE.rglob("*.py")):
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == name:
                yield path.relative_to(PACKAGE).as_posix(), call


def codes_in(expression: ast.expr) -> set[str]:
    """Codes that the first argument of a call may be: one, or both of a choice."""
    if isinstance(expression, ast.IfExp):
        return codes_in(expression.body) | codes_in(expression.orelse)
    return {expression.value} if isinstance(expression, ast.Constant) and isinstance(expression.value, str) else set()


def test_every_place_that_makes_a_note_makes_a_registered_one() -> None:
    made: set[str] = set()
    for module, call in called("note"):
        if module.startswith(("notes/", "report/")):
            continue
        codes = codes_in(call.args[0]) if call.args else set()
        assert codes, f"{module}, line {call.lineno}: write the code where the note is made"
        assert codes <= set(CATALOG), f"{module}, line {call.lineno}"
        given_fields = {word.arg for word in call.keywords if word.arg is not None}
        whole = all(word.arg is not None for word in call.keywords)
        for code in codes:
            fields = set(CATALOG[code].fields)
            assert given_fields == fields if whole else given_fields <= fields, f"{module}, line {call.lineno}"
        made |= codes
    assert made == set(CATALOG) - {"text"}  # no sentence that nobody makes


def test_only_the_reader_makes_notes_that_are_not_checked() -> None:
    assert {module for module, _ in called("Note")} <= {"notes/note.py"}


@pytest.mark.parametrize(
    ("code", "values"),
    [
        ("of-nobody", {}),
        ("over-budget", {"total_bytes": 3}),
        ("over-budget", {"total_bytes": 3, "budget_bytes": 2, "more": 1}),
        ("over-budget", {"total_bytes": 3.5, "budget_bytes": 2}),
        ("over-budget", {"total_bytes": True, "budget_bytes": 2}),
        ("over-budget", {"total_bytes": None, "budget_bytes": 2}),
        ("time-limit", {"gap": "0.1"}),
        ("rows-not-of-64", {"row_weights": 172}),
        ("rows-not-of-64", {"row_weights": ["172"]}),
        ("folded", {"ratios": {"int8": "0.9"}}),
        ("wide-scales", {"engine": 3}),
    ],
)
def test_notes_of_other_values_are_mistakes(code: str, values: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match=code):
        note(code, **values)


def test_numbers_that_are_not_finite_are_told_as_missing() -> None:
    error = note("relative-error", error=math.nan, limit=1e-3)
    assert str(error) == f"relative error {MISSING}, limit 1e-03"
    assert json.dumps(error.to_json(), allow_nan=False)


@pytest.mark.parametrize(
    ("template", "values", "told"),
    [
        ("{a}", {"a": ("x", "y", "z")}, "x, y, z"),
        ("{a:and}", {"a": ("x", "y", "z")}, "x, y and z"),
        ("{a:and}", {"a": ("x",)}, "x"),
        ("{a:apart}", {"a": ("x, y", "z")}, "x, y; z"),
        ("{a}", {"a": ()}, "none"),
        ("{a:more {n}}", {"a": ("x", "y"), "n": 4}, "x, y and 4 more"),
        ("{a:more {n}}", {"a": ("x", "y"), "n": 0}, "x, y"),
        ("{a:.2f}", {"a": {"int8, memory low": 0.851, "int4": None}}, f"int8, memory low: 0.85; int4: {MISSING}"),
        ("{a:(d) more {n}}", {"a": {"x": 3, "y": 4}, "n": 2}, "x (3), y (4) and 2 more"),
        ("{a:,} of {b:.1%}", {"a": 1234567, "b": 0.1234}, "1,234,567 of 12.3%"),
        ("{a}", {"a": "{not} a place"}, "{not} a place"),
    ],
)
def test_values_are_written_as_the_sentence_says(template: str, values: dict[str, object], told: str) -> None:
    assert write(template, values, ENGLISH) == told


def test_few_of_many() -> None:
    assert few(["a", "b", "c", "d", "e"]) == (["a", "b", "c"], 2)
    assert few(["a", "b"]) == (["a", "b"], 0)


def test_texts_of_earlier_versions_are_strings() -> None:
    old = Note.of_json("the budget is larger than uniform fp16")
    assert str(old) == "the budget is larger than uniform fp16"
    assert old.to_json() == str(old)
    assert old.is_text
    assert old == text_note(str(old))
    assert not note("budget-above-fp16").is_text


@pytest.mark.parametrize(
    ("stored", "told"),
    [
        ({"code": "of-a-newer-version", "values": {"bytes": 3, "of": ["a", "b"]}}, 'bytes = 3, of = ["a", "b"]'),
        ({"code": "of-a-newer-version"}, "of-a-newer-version"),
        ({"code": "over-budget", "values": {"total_bytes": 3, "budget_bytes": 2, "by": 1}}, "over-budget: total_bytes"),
        ({"code": "time-limit", "values": {"gap": "{gap.real}"}}, 'time-limit: gap = "{gap.real}"'),
    ],
)
def test_what_this_version_does_not_know_is_shown_as_it_is(stored: dict[str, object], told: str) -> None:
    read = Note.of_json(stored)
    assert not read.is_known
    assert told in str(read)
    assert json.loads(json.dumps(read.to_json())) == {"values": {}} | stored


@pytest.mark.parametrize(
    "value",
    [
        None,
        3,
        ["a"],
        {},
        {"code": 3},
        {"code": "a", "values": []},
        {"code": "a", "values": {"b": {"c": [1]}}},
        {"x": 1},
    ],
)
def test_other_json_is_no_note(value: object) -> None:
    with pytest.raises(ValueError, match="expected a text, or an object with"):
        Note.of_json(value)
