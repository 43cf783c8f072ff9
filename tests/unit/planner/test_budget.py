"""Budgets as users write them."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qplan.cost.file_bytes import FixedBytes, file_bytes
from qplan.errors import InputError
from qplan.formats import FP16, INT4, INT8, QuantFormat
from qplan.planner.budget import Budget, BudgetKind, ResolvedBudget, parse_budgets
from qplan.run.table import SensitivityTable
from qplan.uniform import uniform_formats
from tests.support.invented_table import make_table


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("300MB", 300_000_000),
        ("1.2GB", 1_200_000_000),
        ("300MiB", 300 * 2**20),
        ("0.5 gib", 2**29),
        ("640kB", 640_000),
        ("123456B", 123_456),
        ("123456 bytes", 123_456),
        (".5MB", 500_000),
    ],
)
def test_bytes(text: str, expected: int, table: SensitivityTable, fixed: FixedBytes) -> None:
    budget = Budget.parse(text)
    assert (budget.kind, budget.resolve(table.model, fixed).limit_bytes) == (BudgetKind.BYTES, expected)


def test_relative_budgets(table: SensitivityTable, fixed: FixedBytes) -> None:
    card = table.model
    fp16 = file_bytes(card, dict.fromkeys((t.name for t in card.tensors), FP16), fixed).total
    assert Budget.parse("fp16").resolve(card, fixed).limit_bytes == fp16
    assert Budget.parse("60%").resolve(card, fixed).limit_bytes == int(fp16 * Fraction(60, 100))
    bpw = Budget.parse("4.5bpw").resolve(card, fixed)
    assert bpw.limit_bytes == int(Fraction(9, 2) * card.parameters / 8) + fixed.graph
    int4 = {t.name: INT8 if t.kind == "lm_head" else INT4 for t in card.tensors}
    budget = Budget.parse("INT4")
    assert (budget.kind, budget.bits) == (BudgetKind.UNIFORM, 4)
    assert budget.resolve(card, fixed).limit_bytes == file_bytes(card, int4, fixed).total


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("300", "has no unit"),
        ("3 parsecs", "unknown unit 'parsecs'"),
        ("int7", "no uniform export of 7 bits"),
        ("small", "not understood"),
        ("-3MB", "not understood"),
        ("0MB", "is zero"),
        ("", "not understood"),
    ],
)
def test_nonsense_is_refused_without_a_model(text: str, problem: str) -> None:
    with pytest.raises(InputError, match=problem) as error:
        Budget.parse(text)
    assert "300MB" in str(error.value)


def test_several_budgets_keep_the_words_of_their_user() -> None:
    assert [budget.text for budget in parse_budgets(["int8, 1.50 GB", "60%,"])] == ["int8", "1.50 GB", "60%"]
    assert parse_budgets([]) == ()
    for nothing in ("", " , "):
        with pytest.raises(InputError, match="is not understood"):
            parse_budgets([nothing])


@given(st.integers(1, 10**12), st.sampled_from([1, 1000, 10**6, 2**20, 12_345]), st.integers(0, 1))
def test_an_expressed_size_is_enough_and_close(total: int, unit: int, offset: int) -> None:
    budget = ResolvedBudget(Budget.parse("1MB"), 0, Fraction(unit), offset)
    said = Fraction(budget.express(total + offset).removesuffix("MB").strip())
    assert total <= said * unit <= total * Fraction(1003, 1000) + 1


def test_careful_user_export_of_odd_widths() -> None:
    tied = uniform_formats(make_table(hidden=172, inner=100).model, 4)
    # llmexport halves the block until it divides; a tied head would decode to garbage and gets whole rows
    assert tied["model.layers.0.self_attn.q_proj"] == QuantFormat(4, 4)
    assert tied["model.layers.0.mlp.down_proj"] == QuantFormat(4, 4)
    assert tied["lm_head"] == QuantFormat(8, 0)
    untied = uniform_formats(make_table(hidden=96, inner=98, tied=False).model, 8)
    assert untied["lm_head"] == QuantFormat(8, 32)
    assert untied["model.layers.0.mlp.down_proj"] == QuantFormat(8, 0)
    assert set(uniform_formats(make_table().model, 16).values()) == {FP16}
