"""Tables in the form that llm_bench prints, after its source of August 2026, and what is wrong with some."""

from __future__ import annotations

import pytest

from qplan.cost.llm_bench import BenchTimes, read_bench_table
from qplan.errors import InputError
from tests.support.bench_tables import APART, HEAD, line, table


def test_prefill_and_decode_apart() -> None:
    found = read_bench_table(APART)
    assert found.models == {
        "int8": BenchTimes(128, 1e3 * 128 / 100.0, 1e3 / 20.0),
        "int4": BenchTimes(128, 1e3 * 128 / 160.0, 1e3 / 32.5),
    }
    assert (found.backend, found.threads, found.precision, found.memory) == ("CPU", 4, "low", "low")


def test_prefill_and_decode_in_a_row() -> None:
    head = HEAD.replace("t/s", "speed(tok/s)")
    row = line("int8", "pp128+tg32", "100.00 ± 0.52<br>20.00 ± 0.11")
    assert read_bench_table(table(head, row)).models == {"int8": BenchTimes(128, 1280.0, 50.0)}
    old = head.replace("test", "llm_demo")
    row = line("int8", "prompt=128<br>decode=32", "100.00 ± 0.52<br>20.00 ± 0.11")
    assert read_bench_table(table(old, row)).models == {"int8": BenchTimes(128, 1280.0, 50.0)}


def test_what_stands_around_a_table_and_a_second_one() -> None:
    again = APART.replace("20.00 ± 0.10", "25.00 ± 0.10").replace("100.00 ± 1.00", "90.00 ± 1.00")
    noise = "CPU Group: [ 0 1 2 3 ], 300000 - 1804800\r\nThe device supports: i8sdot:1, fp16:1\r\n"
    found = read_bench_table(f"{noise}{APART}\n{noise}{again}")
    # of each, the fastest
    assert found.models["int8"] == BenchTimes(128, 1280.0, 40.0)


def test_columns_that_are_not_always_there() -> None:
    head = HEAD.replace("| precision |", "| precision | memory | dynamicOption |")
    rows = [
        line("int8", test, speed).replace("| Low |", "| Low | Normal | 8 |")
        for test, speed in (("pp128", "9.00 ± 0.00"), ("tg32", "3.00 ± 0.00"))
    ]
    assert read_bench_table(table(head, *rows)).memory == "normal"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no table of llm_bench"),
        ("prefill 100 tok/s", "no table of llm_bench"),
        ('{"model":"int8","results":[]}', "give the table that it prints"),
        (table(HEAD), "no table of llm_bench: no line begins"),
        (line("int8", "pp128", "1.00 ± 0.10"), "line 1: a row without a header above it"),
        (APART.replace("| 100.00 ± 1.00 |", "|"), "line 3: 6 cells under a header of 7: it is cut off"),
        (APART.replace("threads", "power"), "line 1: a header without threads"),
        (APART.replace("t/s", "s"), "a header without t/s or speed"),
        (APART.replace("100.00 ± 1.00", "0.00 ± 0.00"), "line 3: speed '0.00 ± 0.00' is none"),
        (APART.replace("100.00 ± 1.00", "nan ± nan"), "speed 'nan ± nan' is none"),
        (APART.replace("100.00 ± 1.00", "-3.00 ± 1.00"), "speed '-3.00 ± 1.00' is none"),
        (APART.replace("100.00 ± 1.00", "fast"), "run llm_bench again"),
        (APART.replace("pp128", "pp0"), "line 3: a test of 0 tokens"),
        (APART.replace("pp128", "pp" + 50 * "9"), "line 3: a test of 99999999999999999999 tokens"),
        (APART.replace("pp128", "pp128+tg32"), "pp128.tg32 has one speed for both; run llm_bench with -p and -n apart"),
        (APART.replace("pp128", "warm"), "test 'warm' is not understood"),
        (APART.replace("pp128", "pp64", 1), "prompts of 64, 128 tokens; time all models with one length"),
        (APART.replace("tg32", "pp128", 1), "model int8 has no decode test; run llm_bench with -n 32"),
        (APART.replace("pp128", "tg32", 1), "model int8 has no prefill test; run llm_bench with -p 128"),
        (APART.replace("| 4 |", "| 1 |", 1), "threads 1 and 4 in one file"),
        (APART.replace("CPU", "OPENCL", 1), "backend OPENCL and CPU in one file"),
        (APART.replace("Low", "High", 1), "precision High and Low in one file"),
        (APART.replace("| 4 |", "| four |"), "'four' threads: must be a whole number"),
    ],
)
def test_a_table_that_is_none(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_bench_table(text)
