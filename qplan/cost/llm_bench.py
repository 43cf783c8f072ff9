"""Reads the table that MNN's ``llm_bench`` prints, as people copy it from a phone."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from qplan.errors import InputError

_SPEED = re.compile(r"(\d+(?:\.\d+)?) ± \d+(?:\.\d+)?")
_PREFILL, _DECODE = re.compile(r"pp(\d+)"), re.compile(r"tg(\d+)")
_BOTH = re.compile(r"(?:pp(\d+)\+tg(\d+)|prompt=(\d+)<br>decode=(\d+))")
_RULE = re.compile(r":?-+:?")
_TESTS, _SPEEDS = ("test", "llm_demo"), ("t/s", "speed(tok/s)")
_REMEDY = "copy the whole table as llm_bench prints it"


@dataclass(frozen=True)
class BenchTimes:
    """One model on one device, as a row or two of the table say."""

    prompt_tokens: int
    prefill_ms: float
    """Of the whole prompt."""
    decode_ms: float
    """Per token."""


@dataclass(frozen=True)
class BenchTable:
    """What the table says of all its models."""

    backend: str
    threads: int
    precision: str
    memory: str
    """As `RuntimeConfig` names it."""
    prompt_tokens: int
    models: Mapping[str, BenchTimes]
    """By the name of the model's folder."""


@dataclass(frozen=True)
class _Row:
    line: int
    cells: Mapping[str, str]

    def fail(self, what: str) -> InputError:
        return InputError(f"line {self.line}: {what}")


def read_bench_table(text: str) -> BenchTable:
    """Read one or several tables, with whatever stands around them; of repeated tests the fastest counts.

    Args:
        text: what llm_bench printed: pp and tg tests of each model, or pp+tg tests.

    Raises:
        InputError: no table, a row that is cut off or without a speed, or rows that do not belong together.
    """
    if text.lstrip().startswith("{"):
        msg = "this is the JSON of llm_bench -j, which does not tell its models apart; give the table that it prints"
        raise InputError(msg)
    rows = list(_rows(text))
    if not rows:
        msg = f"no table of llm_bench: no line begins with '| model'; {_REMEDY}"
        raise InputError(msg)
    prefill: dict[str, list[tuple[int, float]]] = {}
    decode: dict[str, list[float]] = {}
    for row in rows:
        prompt, prefill_speed, decode_speed = _test(row)
        if prompt is not None and prefill_speed is not None:
            prefill.setdefault(row.cells["model"], []).append((prompt, 1e3 * prompt / prefill_speed))
        if decode_speed is not None:
            decode.setdefault(row.cells["model"], []).append(1e3 / decode_speed)
    prompts = sorted({prompt for found in prefill.values() for prompt, _ in found})
    if len(prompts) > 1:
        msg = f"prompts of {', '.join(map(str, prompts))} tokens; time all models with one length, such as -p 128"
        raise InputError(msg)
    for name in dict.fromkeys(row.cells["model"] for row in rows):
        for kind, found, option in (("prefill", prefill, "-p 128"), ("decode", decode, "-n 32")):
            if name not in found:
                msg = f"model {name} has no {kind} test; run llm_bench with {option} as well"
                raise InputError(msg)
    return BenchTable(
        backend=_one(rows, "backend"),
        threads=_threads(rows),
        precision=_one(rows, "precision").lower(),
        memory=_one(rows, "memory", default="Low").lower(),
        prompt_tokens=prompts[0],
        models={
            name: BenchTimes(prompts[0], min(ms for _, ms in prefill[name]), min(decode[name])) for name in prefill
        },
    )


def _rows(text: str) -> Iterator[_Row]:
    columns: list[str] | None = None
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip().startswith("|"):
            continue
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if "model" in cells and "backend" in cells:
            columns = cells
            _check_columns(number, columns)
        elif all(_RULE.fullmatch(cell) for cell in cells):
            continue
        elif columns is None:
            msg = f"line {number}: a row without a header above it; {_REMEDY}"
            raise InputError(msg)
        elif len(cells) != len(columns):
            msg = f"line {number}: {len(cells)} cells under a header of {len(columns)}: it is cut off; {_REMEDY}"
            raise InputError(msg)
        else:
            yield _Row(number, dict(zip(columns, cells, strict=True)))


def _check_columns(number: int, columns: Sequence[str]) -> None:
    for wanted in (("threads",), ("precision",), _TESTS, _SPEEDS):
        if not set(wanted) & set(columns):
            msg = f"line {number}: a header without {' or '.join(wanted)}; {_REMEDY}"
            raise InputError(msg)


def _test(row: _Row) -> tuple[int | None, float | None, float | None]:
    """Tokens of the prompt, and tokens per second of prefill and of decode, as far as the row has them."""
    test = next(row.cells[name] for name in _TESTS if name in row.cells)
    column = next(name for name in _SPEEDS if name in row.cells)
    told = row.cells[column]
    if found := _PREFILL.fullmatch(test):
        return _count(row, found[1]), _speed(row, told), None
    if found := _DECODE.fullmatch(test):
        _count(row, found[1])
        return None, None, _speed(row, told)
    if found := _BOTH.fullmatch(test):
        parts = told.split("<br>")
        if len(parts) != 2:  # noqa: PLR2004 - prefill and decode
            msg = f"{test} has one speed for both; run llm_bench with -p and -n apart, or with -pg"
            raise row.fail(msg)
        return _count(row, found[1] or found[3]), _speed(row, parts[0]), _speed(row, parts[1])
    msg = f"test {test!r} is not understood, expected such as pp128, tg32 or pp128+tg32; {_REMEDY}"
    raise row.fail(msg)


def _count(row: _Row, digits: str) -> int:
    if len(digits) > 9 or int(digits) == 0:  # noqa: PLR2004 - a longer one is no length of a prompt
        msg = f"a test of {digits:.20} tokens; {_REMEDY}"
        raise row.fail(msg)
    return int(digits)


def _speed(row: _Row, told: str) -> float:
    match = _SPEED.fullmatch(told.strip())
    value = float(match[1]) if match else math.nan
    if not 0 < value < math.inf:
        msg = f"speed {told!r:.60} is none, expected such as '123.45 ± 0.67' above 0; run llm_bench again"
        raise row.fail(msg)
    return value


def _threads(rows: Sequence[_Row]) -> int:
    told = _one(rows, "threads")
    if not told.isascii() or not told.isdigit() or not 1 <= int(told[:9]) <= 1024:  # noqa: PLR2004 - as RuntimeConfig
        msg = f"{told!r:.40} threads: must be a whole number from 1 to 1024"
        raise rows[0].fail(msg)
    return int(told)


def _one(rows: Sequence[_Row], column: str, default: str | None = None) -> str:
    """What all rows say in a column, which llm_bench leaves out where it has its default."""
    found = list(dict.fromkeys(row.cells.get(column, default or "") for row in rows))
    if len(found) > 1:
        msg = f"{column} {' and '.join(found)} in one file; give a file for each"
        raise InputError(msg)
    return found[0]
