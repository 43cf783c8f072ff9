"""The report on a model of a real size: its tables, its claims, what is made again and what is kept."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

from qplan.report.notation import TIMES
from reports.smollm2.figure import GGUF, LIMITS, QPLAN, RECIPE, UNIFORM, points
from reports.smollm2.gguf_page import rate_of
from reports.smollm2.measure import Measurements
from reports.smollm2.models import PHONE_PLANS, PLANS, Wanted
from reports.smollm2.page import table, write_page
from reports.smollm2.subject import Subject
from tests.support.documented import ROOT


def loss(kl_nats: float) -> dict[str, float]:
    shares = {"top1": 0.91, "top5": 0.93, "perplexity": 25.5, "reference_perplexity": 25.0, "tokens": 512}
    return {"kl_nats": kl_nats, "kl_p99_nats": 10 * kl_nats, "kl_p999_nats": 30 * kl_nats} | shares


def row(name: str, kl_nats: float, against: str | None, mb: float, **more: Any) -> dict[str, Any]:
    plain = {"mean_bits": None, "dynamic_option": 0, "for_phones": False, "beside": None, "texts": [f"{name} | says"]}
    own = {"name": name, "command": f"make {name}", "against": against, "file_bytes": mb * 1e6, "here": loss(kl_nats)}
    found = plain | own | more
    if found["beside"] or found["for_phones"]:
        del found["texts"]
    return found


def speed(ram_mb: float, low: float | None = None, high: float = 1.1) -> dict[str, Any]:
    found: dict[str, Any] = {"ram_bytes": ram_mb * 1e6, "decode_tokens_per_s": 150.0, "prefill_tokens_per_s": 480.0}
    if low is not None:
        found |= {phase: {"times": 1.05, "low": low, "high": high, "rounds": 9} for phase in ("decode", "prefill")}
    return found


RESULTS: dict[str, Any] = {
    "model": "Tiny",
    "note": "",
    "parameters": 1000,
    "text": "test.txt",
    "tokens": 8192,
    "seq_len": 512,
    "analysis": {"command": "qplan analyze MODEL", "seconds": 90.0},
    "machine": "Linux",
    "engine": "3.6.1",
    "processor": "arm-dot",
    "reference_perplexity": 25.0,
    "rows": [
        row("fp16", 1e-8, "int8", 270),
        row("int8", 4e-2, None, 144),
        row("int4", 3e-1, None, 91),
        row("int4-hqq", 2e-1, "int4", 98),
        row("plan-int8", 6e-3, "int8", 143, mean_bits=8.0),
        row("plan-int4", 6e-2, "int4", 90, mean_bits=4.8),
        row("plan-int4-files", 5e-2, "int4", 90, mean_bits=4.9),
        row("plan-Q4_0", 4e-2, None, 92, mean_bits=5.0, beside="Q4_0"),
        row("plan-int4-phone", 7e-2, "int4", 90, for_phones=True, arm=loss(8e-2), same_tokens_here=loss(7e-2)),
    ],
    "speeds": {
        "fp16": speed(300, 1.2),
        "int8": speed(172),
        "int4": speed(119),
        "int4-hqq": speed(119, 0.99),
        "plan-int8": speed(172, 0.99),
        "plan-int4": speed(118, 0.97, 0.99),
        "plan-int4-files": speed(130, 1.02),
        "plan-Q4_0": speed(125),
    },
    "gguf": {
        "files": [
            {"name": "F32", "file_bytes": 538e6, "ram_bytes": 540e6, "here": loss(1e-7)},
            {"name": "Q4_0", "file_bytes": 92e6, "ram_bytes": 93e6, "here": loss(3e-2)},
        ],
        "speeds": [
            {"name": name, "threads": threads, "decode": 100.0 * threads, "prefill": 300.0}
            for name in ("Q4_0", "plan-Q4_0", "plan-int4")
            for threads in (1, 2)
        ],
        "tools": "tools==1",
        "library": "library==1",
        "imatrix_tokens": 12288,
        "odd_rows": [576],
    },
    "questions": ["Why?"],
    "new_tokens": 48,
    "texts": ["Because."],
    "took_s": {"plans": 600.0, "measured": 50.0},
}


def page(tmp_path: Path, results: dict[str, Any] = RESULTS) -> str:
    write_page(results, tmp_path)
    return (tmp_path / "README.md").read_text(encoding="utf-8")


def test_plans_stand_below_what_they_are_held_against() -> None:
    lines = list(table(RESULTS))[2:]
    assert [line.split(" | ")[0].removeprefix("| ") for line in lines] == [
        "FP16",
        "uniform INT8",
        "**qplan**, INT8's limits",
        "uniform INT4",
        "llmexport --hqq, 4 bits",
        "**qplan**, INT4's limits",
        "**qplan**, INT4's files alone",
    ]


def test_a_ratio_of_times_is_told_beyond_its_spread_alone(tmp_path: Path) -> None:
    lines = {line.split(" | ")[0]: line for line in table(RESULTS)}
    assert "| 150 (=) | 480 (=) |" in lines["| **qplan**, INT8's limits"]
    assert f"| 150 (1.05{TIMES}) |" in lines["| **qplan**, INT4's files alone"]
    assert f"| 150 (1.05{TIMES}, 1.02\N{EN DASH}1.10) |" in page(tmp_path)


def test_what_a_plan_takes_more_of_is_told(tmp_path: Path) -> None:
    found = page(tmp_path)
    plan, best = f"**qplan**, INT4's limits: 0.20{TIMES} the loss", f"0.30{TIMES} that of llmexport --hqq, 4 bits"
    assert f"- {plan} of uniform INT4, {best}; it takes no more of anything." in found
    assert f"0.25{TIMES} that of llmexport --hqq, 4 bits; it takes more decode time and prefill time and RAM." in found
    larger = copy.deepcopy(RESULTS)
    larger["rows"][4]["file_bytes"] = next(row["file_bytes"] for row in larger["rows"] if row["name"] == "int8") + 2600
    assert f"0.15{TIMES} the loss of uniform INT8; it takes more 2,600 bytes of files." in page(tmp_path, larger)


def test_where_llama_cpp_loses_less_is_said(tmp_path: Path) -> None:
    found = page(tmp_path)
    assert f"- **qplan**, INT8's limits: 0.20{TIMES} the loss of Q4_0, the best file that is no larger." in found
    lost = f"llama.cpp loses less: 1.33{TIMES} the loss of Q4_0, whose bytes it has."
    assert f"- **qplan**, Q4_0's bytes: {lost}" in found
    assert "**qplan**, INT4's limits: 2" not in found  # no file is as small
    assert "| llama.cpp Q4_0 | 92.0 | 93 | 100/200 | 300/300 | 3.0e-2 |" in found
    assert "| **qplan**, Q4_0's bytes | 92.0 | 125 | 100/200 |" in found
    assert "Rows of 576 weights" in found
    without = RESULTS | {"gguf": RESULTS["gguf"] | {"files": [], "speeds": []}, "rows": RESULTS["rows"][:7]}
    assert "GGUF" not in page(tmp_path, without)


def test_a_plan_s_speed_beside_llama_cpp_follows_from_its_ratio_by_turns() -> None:
    timed = {"name": "int4", "threads": 1, "decode": 210.0, "prefill": 600.0}
    results = RESULTS | {"gguf": RESULTS["gguf"] | {"speeds": [*RESULTS["gguf"]["speeds"], timed]}}
    assert rate_of(results, "plan-int4", "decode") == 210 / 1.05
    assert rate_of(results, "plan-int4", "decode", threads=2) == 200
    assert rate_of(results, "int4", "decode") == 210
    assert rate_of(results, "int8", "decode") is None


def test_phones_and_texts(tmp_path: Path) -> None:
    found = page(tmp_path)
    assert "| **qplan**, INT4's limits, for phones | 90.0 | 8.0e-2 |" in found
    assert "on the first 512 of the tokens" in found
    assert "| uniform INT8 | int8 \\| says |" in found


def test_points_of_the_figure() -> None:
    every = list(points(RESULTS))
    found = {point.label: point for point in every}
    assert {point.series for point in every} == {QPLAN, LIMITS, UNIFORM, RECIPE, GGUF}
    assert list(found["Q4_0"].places) == [92, 93, 10]
    assert found["INT8"].places[2] is None  # not timed beside llama.cpp


def test_wanted_plans_have_names_of_their_own() -> None:
    every = (*PLANS, *PHONE_PLANS, Wanted("92000000B", "files", beside="Q4_0"))
    assert [wanted.name for wanted in every] == [
        "plan-int8",
        "plan-int4",
        "plan-int4-files",
        "plan-int8-phone",
        "plan-int4-phone",
        "plan-Q4_0",
    ]


def test_what_was_measured_is_measured_again_if_its_inputs_changed(tmp_path: Path) -> None:
    subject = object.__new__(Subject)
    object.__setattr__(subject, "work", tmp_path)
    calls: list[int] = []

    def measure() -> int:
        calls.append(1)
        return len(calls)

    def once(model: str) -> int:
        # another process each time
        return int(Measurements(subject, None).once("row", {"model": model}, measure))  # type: ignore[arg-type]

    assert [once("a"), once("a"), once("b"), once("b")] == [1, 1, 2, 2]


def test_the_readme_s_first_table_is_the_report_s() -> None:
    results = json.loads((ROOT / "reports/smollm2/results.json").read_text(encoding="utf-8"))
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith("|"))
    shown = [line for line in lines[first:] if line][: len(list(table(results)))]
    assert shown == list(table(results))
