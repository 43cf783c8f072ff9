"""Formats on ARM: what was measured, and that targets allow nothing else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from qplan.compat.arm_table import ArmRow, ArmTable, told
from qplan.cost.target import find_target
from qplan.formats import DEFAULT_FORMATS, FP16, TIED_BITS, QuantFormat
from qplan.mnn.arm.processors import PROCESSORS
from qplan.tensors import Role, TensorSpec

TABLE = ArmTable.read()

SPEC = TensorSpec("a.q_proj", "/a/q_proj/Linear", 0, "q_proj", Role.ATTENTION, 384, 384, bias=False)


def test_every_usual_format_was_measured_on_every_processor() -> None:
    assert set(TABLE.processors) == set(PROCESSORS)
    for name in PROCESSORS:
        for fmt in (*DEFAULT_FORMATS, *(QuantFormat(bits, block) for bits in (4, 8) for block in (24, 32, 128))):
            row = TABLE.of(fmt, name)
            assert row is not None
            assert len(row.results) == 8
        for fmt in (FP16, *(QuantFormat(bits, 64) for bits in TIED_BITS if bits < 16)):
            assert TABLE.of(fmt, name, tied=True) is not None


def test_what_a_target_allows_was_measured_to_be_right() -> None:
    allowed = [
        (name, row)
        for row in TABLE.rows
        for name in (row.processor, "phone")
        if find_target(name).legal(SPEC, row.format)
    ]
    assert len(allowed) > 300
    assert {(name, row.place): told(row) for name, row in allowed if told(row) != "ok"} == {}


def test_what_was_measured_to_be_wrong() -> None:
    def result(fmt: str, processor: str) -> str:
        row = TABLE.of(QuantFormat.parse(fmt), processor)
        assert row is not None
        return told(row)

    assert result("int3", "arm-sme2") == result("int2-b0", "arm-sme2") == "NaN"
    assert result("int3", "arm-i8mm") == "ok"
    assert result("int8-b24", "arm-v8") == "NaN"
    assert result("int4-b16", "arm-dot") == "NaN (precision low, decode)"


def test_a_table_reads_back_and_a_newer_row_replaces_an_older(tmp_path: Path) -> None:
    rows = TABLE.rows[:2]
    table = replace(TABLE, rows=rows)
    table.write(tmp_path / "arm.json")
    assert ArmTable.read(tmp_path / "arm.json") == table
    newer = replace(rows[0], results={"low 0 prefill": "crash SIGSEGV"})
    merged = table.merged(ArmTable.empty(table.engine, "99", newer))
    assert (merged.engine, merged.rows) == (table.engine, (newer, rows[1]))


def test_rows_of_another_engine_are_not_said_to_be_of_the_newer() -> None:
    newer = replace(TABLE.rows[0], results={"low 0 prefill": "crash SIGSEGV"})
    assert TABLE.merged(ArmTable.empty("9.9.9", "99", newer)).rows == (newer,)


@pytest.mark.parametrize(
    ("faults", "words"),
    [
        ({}, "ok"),
        (dict.fromkeys(("low 0 decode", "low 2 decode"), "NaN"), "NaN (precision low, decode)"),
        (dict.fromkeys(("low 2 prefill", "low 2 decode"), "wrong 0.5"), "wrong 0.5 (precision low, option 2)"),
        ({"low 0 prefill": "NaN", "high 2 decode": "NaN"}, "NaN (low 0 prefill, high 2 decode)"),
        ({"low 0 prefill": "NaN", "low 0 decode": "hang"}, None),
    ],
)
def test_faults_are_told_with_the_settings_that_they_are_in(faults: dict[str, str], words: str | None) -> None:
    every = {f"{p} {o} {path}": "ok 0.02" for p in ("low", "high") for o in (0, 2) for path in ("prefill", "decode")}
    row = ArmRow(FP16, tied=False, processor="arm-dot", results=every | faults)
    assert told(row) == (words or "NaN (precision low, option 0, prefill); hang (precision low, option 0, decode)")


def test_formats_that_do_alike_share_a_line() -> None:
    def rows(fmt: str, *results: str) -> list[ArmRow]:
        pairs = zip(("arm-v8", "arm-dot"), results, strict=True)
        return [ArmRow(QuantFormat.parse(fmt), tied=False, processor=name, results={"a 0 b": r}) for name, r in pairs]

    table = ArmTable.empty(
        "3.6.1",
        "11",
        *rows("int8", "ok 0.1", "ok 0.2"),
        *rows("int4", "ok 0.1", "NaN"),
        *rows("int6", "ok 0.3", "ok 0"),
    )
    assert list(table.summary()) == [
        (("int8, int6 in blocks of 64",), ("ok", "ok")),
        (("int4 in blocks of 64",), ("ok", "NaN")),
    ]


def test_many_formats_are_named_in_few_words() -> None:
    names = "fp16,int8-b0,int8-b32,int8-b0-sym,int8-b32-sym,int4-b0,int4-b32,int4-b0-sym,int4-b32-sym,int3-b16,int2-sym"
    rows = [ArmRow(QuantFormat.parse(name), tied=False, processor="arm-v8") for name in names.split(",")]
    rows += [ArmRow(QuantFormat(8, 0), tied=True, processor="arm-v8")]
    rows += [
        ArmRow(QuantFormat(5, block, sym), tied=False, processor="arm-v8") for block, sym in ((0, False), (8, True))
    ]
    assert list(ArmTable.empty("3.6.1", "11", *rows).summary()) == [
        (
            (
                "fp16",
                "int8, int4 by whole rows and in blocks of 32 with and without zero points",
                "int3 in blocks of 16",
                "int2 symmetric in blocks of 64",
                "tied head int8 by whole rows",
                "int5 by whole rows; symmetric in blocks of 8",
            ),
            ("ok",),
        )
    ]
