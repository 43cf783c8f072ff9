"""Losses as another back end has them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from qplan.formats import QuantFormat
from qplan.run.table import SensitivityTable
from qplan.settings import Arithmetic, DynamicOption
from tests.support.invented_table import make_table


@pytest.fixture
def table() -> SensitivityTable:
    """A table under memory low that says what every arithmetic adds."""
    plain = make_table(("fp16", "int8", "int4", "int4-b8"))
    rows = []
    for row in plain.measurements:
        is_float = QuantFormat.parse(row.format).is_float
        low = replace(row, memory="low", half_nats=5e-5)
        if not is_float:
            low = replace(row, memory="low", kl_nats=row.kl_nats + 2.9e-4)
            low = replace(low, token_nats=3e-4, block_nats=1e-4, arm_block_nats=2e-4)
        rows += [low, replace(row, memory="normal")]
    return replace(plain, conditions=replace(plain.conditions, memory="low"), measurements=tuple(rows))


@pytest.mark.parametrize(
    ("arithmetic", "option", "added"),
    [("x86", 2, 1e-4), ("arm", 2, 2e-4), ("arm-fp16", 2, 2e-4), ("float", 0, 0.0), ("float", 2, 0.0)],
)
def test_integers_lose_what_weights_lose_and_what_activations_add(
    table: SensitivityTable, arithmetic: Arithmetic, option: DynamicOption, added: float
) -> None:
    found = table.computing(arithmetic, option)
    assert found is not None
    before, after = table.kl("normal"), found.kl("low")
    for tensor, row in after.items():
        assert row["int4"] == pytest.approx(before[tensor]["int4"] + added)
        half = 5e-5 if arithmetic == "arm-fp16" else 0.0
        assert row["fp16"] == pytest.approx(before[tensor]["fp16"] + half)
        assert ("int4-b8" in row) == (option == 0 or arithmetic == "float")
    assert found.kl("normal") == table.kl("normal")
    assert (found.conditions.arithmetic, found.conditions.dynamic_option) == (arithmetic, option)
    assert found.computing(arithmetic, option) is found
    assert table.computing(arithmetic, option) is found  # computed once


def test_what_was_measured_stays_where_activations_are_rounded_alike(table: SensitivityTable) -> None:
    assert table.computing("x86", 0) is table
    arm, half = table.computing("arm", 0), table.computing("arm-fp16", 0)
    assert arm is not None
    assert half is not None
    assert arm.kl("low") == table.kl("low")
    for tensor, row in half.kl("low").items():
        assert row["int8"] == table.kl("low")[tensor]["int8"]
        assert row["fp16"] == pytest.approx(table.kl("low")[tensor]["fp16"] + 5e-5)


def test_a_table_that_does_not_say_is_no_help(table: SensitivityTable) -> None:
    bare = replace(table, measurements=tuple(replace(m, block_nats=None, half_nats=None) for m in table.measurements))
    assert bare.computing("x86", 2) is None
    assert bare.computing("arm-fp16", 0) is None
    assert bare.computing("arm", 2) is not None
    assert bare.computing("float", 0) is not None


def test_tables_of_before_keep_their_hash(table: SensitivityTable) -> None:
    plain = make_table()
    assert "arithmetic" not in plain.conditions.to_json()
    assert table.computing("arm", 2).sha256 != table.sha256  # type: ignore[union-attr]
