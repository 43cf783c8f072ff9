"""A wrong word is refused before anything is loaded: with its value, a remedy, and where no torch can be imported."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qplan.cost.file_bytes import estimate_fixed
from qplan.planner.budget import Budget
from qplan.planner.planning import make_plan
from qplan.run.calibration import CalibrationSet
from qplan.run.folder import RunFolder
from tests.support.invented_table import make_table

DOOR = """
import json, sys

ABSENT = ("torch", "transformers", "MNN", "datasets", "huggingface_hub")

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ABSENT:
            raise ModuleNotFoundError(f"{name} was imported before the command line was understood")

sys.meta_path.insert(0, Absent())
from qplan.cli.main import main

for line in sys.stdin:
    words = json.loads(line)
    try:
        main([*words, "--json"])
    except SystemExit:
        pass
    print("next", flush=True)
"""


@dataclass(frozen=True)
class Refusal:
    """A command line that is wrong in one word."""

    line: str
    words: tuple[str, ...]
    """What the message holds: value, limit, remedy."""
    kind: str = "InputError"


REFUSALS = (
    Refusal("emit --budget int44", ("'int44'", "only of 2, 3, 4, 5, 6, 8, 16", "300MB")),
    Refusal("emit --budget int8,3parsecs", ("'3parsecs'", "unknown unit", "300MB")),
    Refusal("emit --budget 1kB", ("budget 1kB", "below the smallest plan", "raise it"), "InfeasibleError"),
    Refusal("emit --max-ram 3OOMB", ("--max-ram '3OOMB'", "at least a byte", "300MB")),
    Refusal("emit --max-ram 1kB", ("RAM", "the nearest", "Raise it"), "InfeasibleError"),
    Refusal(
        "emit --budget int4 --max-ram 1kB",
        ("RAM <= 0.001", "and budget int4", "nearest is RAM"),
        "InfeasibleError",
    ),
    Refusal("emit --max-kl 0", ("--max-kl 0", "above 0")),
    Refusal("emit --budget ٣MB", ("'٣MB'", "not understood", "300MB")),
    Refusal("emit --budget int" + "9" * 5000, ("not understood", "300MB")),
    Refusal("emit --budget " + "9" * 17 + "GB", ("above the largest", "10^18 bytes", "300MB")),
    Refusal("emit --max-ram " + "9" * 18 + "GB", ("--max-ram", "at most 10^18 bytes")),
    Refusal("emit --max-kl 1e308", ("--max-kl 1e+308", "at most 1000")),
    Refusal("emit --max-decode-ms 1e300", ("--max-decode-ms 1e+300", "at most 1e+09")),
    Refusal("emit --min-bits *.q_proj=³", ("--min-bits *.q_proj=³", "whole number")),
    Refusal("emit --pin *.q_proj=int4-b" + "9" * 5000, ("not understood", "int4-b32")),
    Refusal("emit --engine " + "9" * 5000 + ".0", ("not understood", "3.6.1")),
    Refusal("emit --run " + "x" * 300, ("x" * 300, "File name too long", "give another")),
    Refusal("emit --threads " + "9" * 30, ("--threads 9", "at most 2147483647")),
    Refusal("compat --table empty", ("empty", "Is a directory", "check the name")),
    Refusal("frontier --points 1001", ("--points 1001", "at most 1000")),
    Refusal("emit --max-kl inf", ("--max-kl inf", "finite")),
    Refusal("emit --max-kl 1e-12 --budget int4", ("KL <=", "nearest"), "InfeasibleError"),
    Refusal("emit --max-ppl-increase 1%%", ("--max-ppl-increase '1%%'", "1%")),
    Refusal("emit --objective smallest", ("--objective smallest", "--max-kl")),
    Refusal("emit --max-decode-ms 20", ("--max-decode-ms 20", "device.json does not exist", "qplan profile --run")),
    Refusal("emit --max-prefill-ms 20", ("--max-prefill-ms 20", "device.json does not exist", "qplan profile --run")),
    Refusal("emit --pin *.99.x=int8", ("--pin '*.99.x'", "matches no tensor", "similar names")),
    Refusal("emit --pin *.q_proj=int9", ("9 bits", "use one of")),
    Refusal("emit --pin *.q_proj=int6 --pin *.q_proj=int4", ("*.q_proj=int4", "has int6 already", "one of them")),
    Refusal("emit --pin *.q_proj=int3", ("pinned to int3", "measured and legal", "--formats")),
    Refusal("emit --min-bits *.99.x=6", ("--min-bits '*.99.x'", "matches no tensor", "similar names")),
    Refusal("emit --min-bits *.q_proj=17", ("--min-bits *.q_proj=17", "at most 16")),
    Refusal("emit --group {layer}.99.*", ("--group", "matches no tensor", "similar names")),
    Refusal("emit --min-bits *.q_proj=six", ("--min-bits *.q_proj=six", "whole number", "e.g. 6")),
    Refusal("emit --logits-bits -1", ("--logits-bits -1", "0 (no rule)")),
    Refusal("emit --logits-bits 17", ("--logits-bits 17", "at most 16")),
    Refusal("emit --max-memory 10", ("--max-memory '10'", "at least a byte", "300MB")),
    Refusal("emit --ray auto --dry-run", ("--dry-run --ray auto", "this machine", "leave one of them out")),
    Refusal("emit --metric beauty", ("'beauty'", "'kl'"), "BadParameter"),
    Refusal("emit --target toaster", ("'toaster'", "cpu-x86")),
    Refusal("emit --engine latest", ("'latest'", "3.6.1")),
    Refusal("emit --engine 3.0.0", ("engine 3.0.0", "3.4.0")),
    Refusal("emit --prove x86", ("--prove 'x86'", "no processor", "arm-i8mm", "arm-sme2")),
    Refusal("emit --prove arm", ("--prove arm-v8,arm-dot,arm-i8mm", "does not hold", "'qplan engines add arm'")),
    Refusal("emit --prove arm-sme2", ("--prove arm-sme2", "'qplan engines add arm --sme2'")),
    Refusal("emit --prove arm-dot --no-build", ("--prove arm-dot --no-build", "leave one out")),
    Refusal("emit --prove arm-dot --engine 3.5.0", ("--engine 3.5.0", "installed version", "leave one of them out")),
    Refusal("emit --tune sequential", ("--tune sequential", "--rounding rtn", "leave it out")),
    Refusal("emit --tune sequential --no-build", ("--tune sequential --no-build", "leave one out")),
    Refusal("emit --tune scales", ("--tune scales", "--rounding rtn", "leave it out")),
    Refusal("emit --tune scales --no-build", ("--tune scales --no-build", "leave one out")),
    Refusal("emit --tune never", ("'never'", "'auto', 'sequential', 'scales', 'full', 'off'"), "BadParameter"),
    Refusal("emit --dynamic-option 1", ("'1'", "'auto', '0', '2'"), "BadParameter"),
    Refusal("emit --dynamic-option 2", ("--dynamic-option 2", "memory normal", "leave it out")),
    Refusal("emit --text nofile.txt", ("--text nofile.txt", "does not exist", ".jsonl")),
    Refusal("emit --text words.csv", ("--text words.csv", "'.csv'", ".jsonl")),
    Refusal("emit --plan nofile.json", ("--plan nofile.json", "does not exist", "qplan emit")),
    Refusal("emit --plan other.json", ("other.json", "other losses", "qplan emit"), "StaleArtifactError"),
    Refusal("emit --plan other.json --budget int8", ("--plan other.json --budget int8", "leave one of them out")),
    Refusal("emit --plan other.json --pin *=int8 --max-kl 1", ("--max-kl --pin", "leave one of them out")),
    Refusal("emit --run=", ("--run", "is empty", "leave it out"), "BadParameter"),
    Refusal("emit --plan=", ("--plan", "is empty"), "BadParameter"),
    Refusal("emit --pin=", ("--pin", "is empty"), "BadParameter"),
    Refusal("emit --max-kl 1_0", ("'1_0'", "plain digits"), "BadParameter"),
    Refusal("emit --tokens 1_000", ("'1_000'", "plain digits"), "BadParameter"),
    Refusal("emit --budget int08", ("'int08'", "300MB")),
    Refusal("emit --pin *=int08", ("'int08'", "int4-b32")),
    Refusal("analyze M --formats int8,,int4", ("'int8,,int4'", "leaves a format out", "fp16,int8")),
    Refusal("analyze M --formats int4-b064", ("'int4-b064'", "int4-b32")),
    Refusal("ladder M --tolerance int8=1_0", ("int8=1_0", "RUNG=NATS")),
    Refusal("frontier --points ٣", ("--points",), "BadParameter"),
    Refusal("emit --llmexport nowhere", ("no llmexport.py in nowhere", "MNN checkout")),
    Refusal("emit --tokens 3", ("--tokens 3", "one sequence of 16", "raise it")),
    Refusal("emit --threads 0", ("--threads 0", "at least 1")),
    Refusal("emit --repair -1", ("--repair -1", "at least 0")),
    Refusal("emit --run nothing", ("--run nothing", "qplan analyze")),
    Refusal("analyze M --calib nofile.txt", ("--calib nofile.txt", "does not exist", "python-stdlib")),
    Refusal("analyze M --calib gbk.txt", ("gbk.txt is not UTF-8", "convert it")),
    Refusal("analyze M --calib empty.txt", ("empty.txt holds no text", "few thousand tokens")),
    Refusal("emit --text alpaca.jsonl", ("line 1 has none of the fields", "it has instruction")),
    Refusal("ladder M --text empty.txt", ("empty.txt holds no text", "few thousand tokens")),
    Refusal("analyze ./M --calib nofile.txt", ("./M is not a folder", "config.json")),
    Refusal("analyze empty --calib nofile.txt", ("empty has no config.json", "Hugging Face")),
    Refusal("analyze a/b/c", ("'a/b/c'", "hub id")),
    Refusal("analyze M --formats int7", ("7 bits", "use one of")),
    Refusal("analyze M --samples 0", ("--samples 0", "at least 1")),
    Refusal("analyze M --seq-len 1", ("--seq-len 1", "at least 2")),
    Refusal("analyze M --seed -1", ("--seed -1", "at least 0")),
    Refusal("analyze M --jobs 0", ("--jobs 0", "at least 1")),
    Refusal("analyze M --device gpu", ("--device 'gpu'", "cuda")),
    Refusal("analyze M --dtype float16", ("--dtype float16", "--mode gradient")),
    Refusal("analyze M --mode guess", ("'guess'", "'gradient'"), "BadParameter"),
    Refusal("analyze M --memory normal --dynamic-option 2", ("--dynamic-option 2", "leave one of them out")),
    Refusal("frontier --points 1", ("--points 1", "at least 2")),
    Refusal("frontier --pin *.99.x=int8", ("--pin '*.99.x'", "matches no tensor", "similar names")),
    Refusal("profile --rounds 0", ("--rounds 0", "at least 1")),
    Refusal("profile --llmexport nowhere", ("no llmexport.py in nowhere", "MNN checkout")),
    Refusal("ladder M --text nofile.txt", ("--text nofile.txt", "does not exist", ".jsonl")),
    Refusal("ladder M --tolerance int9=1", ("--tolerance int9=1", "fp32, fp16, int8, int4, plan")),
    Refusal("ladder M --tolerance int8=nan", ("--tolerance int8=nan", "above 0")),
    Refusal("ladder M --tokens 64", ("--tokens 64", "one sequence of 128", "raise it")),
    Refusal(
        "ladder M --run qplan-runs/tiny --seq-len 129",
        ("--seq-len 129", "context of 128 tokens", "int8/plan.json", "lower it"),
    ),
    Refusal("ladder M --memory high", ("'high'", "'low', 'normal'"), "BadParameter"),
    Refusal("ladder M --run nothing", ("--run nothing", "qplan analyze")),
    Refusal("demo --budget int9", ("'int9'", "300MB")),
    Refusal("report int3", ("'int3'", "int4, int8", "qplan emit")),
    Refusal("report --run nothing", ("--run nothing", "qplan analyze")),
    Refusal("explain int3", ("'int3'", "int4, int8", "qplan emit")),
    Refusal("explain int4 *.99.x", ("TENSOR '*.99.x'", "matches no tensor", "similar names")),
    Refusal("plan --budget int44", ("'int44'", "only of 2, 3, 4, 5, 6, 8, 16", "300MB")),
    Refusal("plan --budget 1kB", ("budget 1kB", "below the smallest plan", "raise it"), "InfeasibleError"),
    Refusal("plan --max-ram 1kB", ("RAM", "the nearest", "Raise it"), "InfeasibleError"),
    Refusal("plan --max-decode-ms 20", ("--max-decode-ms 20", "device.json does not exist", "qplan profile --run")),
    Refusal("plan --pin *.99.x=int8", ("--pin '*.99.x'", "matches no tensor", "similar names")),
    Refusal("plan --dynamic-option 2", ("--dynamic-option 2", "memory normal", "leave it out")),
    Refusal("plan --kv kv8", ("--kv kv8", "--context")),
    Refusal("plan --engine 3.0.0", ("engine 3.0.0", "3.4.0")),
    Refusal("plan --run nothing", ("--run nothing", "qplan analyze")),
    Refusal("plan --out empty", ("empty",)),
    Refusal("plan diff int4 int3", ("'int3'", "int4, int8", "qplan emit")),
    Refusal("plan diff int4 int8 --run nothing", ("--run nothing", "qplan analyze")),
    Refusal("quantize M --budget int44", ("'int44'", "only of 2, 3, 4, 5, 6, 8, 16", "300MB")),
    Refusal("quantize M --calib nofile.txt", ("--calib nofile.txt", "does not exist", "python-stdlib")),
    Refusal("quantize ./M", ("./M is not a folder", "config.json")),
    Refusal("quantize M --effort huge", ("'huge'", "'auto', 'quick', 'default', 'thorough'"), "BadParameter"),
    Refusal("quantize M --target toaster", ("'toaster'", "cpu-x86")),
    Refusal("quantize M --max-memory 10", ("--max-memory '10'", "at least a byte", "300MB")),
    Refusal(
        "quantize M --effort thorough --max-memory 1GB", ("--max-memory --effort thorough", "leave one of them out")
    ),
    Refusal("run empty hi --max-tokens 0", ("--max-tokens 0", "at least 1")),
    Refusal("run nothing hi", ("nothing", "not a folder")),
    Refusal("run empty hi", ("missing-file", "config.json", "Remedy"), "PreflightError"),
    Refusal("run empty hi --threads many", ("'many'", "whole number"), "BadParameter"),
    Refusal("bench empty", ("missing-file", "config.json", "Remedy"), "PreflightError"),
    Refusal("bench M --tokens 1", ("--tokens 1", "at least 2")),
    Refusal("bench M --seq-len 1", ("--seq-len 1", "at least 2")),
    Refusal("check empty --engine latest", ("'latest'", "3.6.1")),
    Refusal("compat measure --engine latest", ("'latest'", "3.6.1")),
    Refusal("compat measure --architectures --only gpt9", ("gpt9", "qwen2")),
    Refusal("compat measure --only qwen2", ("--only", "--architectures")),
    Refusal("compat measure --arm", ("--arm needs", "'qplan engines add arm'")),
    Refusal("compat measure --arm --only qwen2", ("--arm", "leave", "--only")),
    Refusal("compat measure --formats int4", ("--formats is for --arm", "leave it out")),
    Refusal("engines add x86", ("'x86'", "added or removed is arm")),
    Refusal("engines remove x86", ("'x86'", "added or removed is arm")),
    Refusal("compat measure --llmexport nowhere", ("no llmexport.py in nowhere", "MNN checkout")),
)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the run of an invented analysis under memory normal, and with two of its plans."""
    folder = tmp_path_factory.mktemp("doors")
    run, table = RunFolder(folder / "qplan-runs" / "tiny"), make_table()
    table.write(run.sensitivity)
    rows = np.arange(4 * 16, dtype=np.int64).reshape(4, 16)
    CalibrationSet(rows[:2], rows[2:3], rows[3:], "invented", None, 0, "e" * 64).write(run.calibration)
    for budget in ("int4", "int8"):
        make_plan(table, Budget.parse(budget), estimate_fixed(table.model)).write(run.budget(budget) / "plan.json")
    (run.budget("int8") / "model").mkdir()
    (folder / "empty").mkdir()
    (folder / "words.csv").touch()
    (folder / "empty.txt").touch()
    (folder / "gbk.txt").write_bytes("今天天气很好。".encode("gbk"))
    (folder / "alpaca.jsonl").write_text('{"instruction": "add", "output": "a + b"}')
    plan = make_plan(table, Budget.parse("int8"), estimate_fixed(table.model))
    replace(plan, sensitivity_sha256="0" * 64).write(folder / "other.json")
    return folder


def answered(lines: Sequence[str], folder: Path) -> dict[str, dict[str, Any]]:
    """The object of each command line, run one after the other in one process that can import no torch."""
    typed = "".join(json.dumps(line.split()) + "\n" for line in lines)
    command = [sys.executable, "-c", DOOR]
    environment = os.environ | {"QPLAN_CACHE": str(folder / "no-cache")}
    done = subprocess.run(
        command, cwd=folder, input=typed, capture_output=True, text=True, check=False, env=environment
    )
    found = [json.loads(part) for part in done.stdout.split("next\n") if part.strip()]
    assert len(found) == len(lines), done.stderr
    return dict(zip(lines, found, strict=True))


@pytest.fixture(scope="module")
def answers(work: Path) -> dict[str, dict[str, Any]]:
    """What is answered to all refusals."""
    return answered([refusal.line for refusal in REFUSALS], work)


@pytest.mark.parametrize("refusal", REFUSALS, ids=lambda refusal: refusal.line[:60])
def test_a_wrong_word_is_refused_without_torch(refusal: Refusal, answers: dict[str, dict[str, Any]]) -> None:
    error = answers[refusal.line]["error"]
    for word in refusal.words:
        assert word in error["message"], error
    assert error["kind"] == refusal.kind
    assert error["exit_code"] == answers[refusal.line]["exit_code"] != 0


def test_nothing_is_left_behind_by_refusals(work: Path, answers: dict[str, dict[str, Any]]) -> None:
    assert len(answers) == len(REFUSALS)
    run = work / "qplan-runs" / "tiny"
    assert sorted(path.name for path in run.iterdir()) == ["calibration.json", "int4", "int8", "sensitivity.parquet"]
    assert not (work / "qplan-engines").exists()


def test_right_words_go_on_to_what_needs_torch(work: Path) -> None:
    lines = ("emit --budget int8", "emit --plan qplan-runs/tiny/int4/plan.json", "profile", "demo --budget int4,60%")
    for answer in answered(lines, work).values():
        assert answer["error"]["kind"] == "ModuleNotFoundError"
        assert "was imported before the command line was understood" in answer["error"]["message"]


def test_a_plan_is_solved_without_torch_and_goes_on_as_one_to_build(work: Path) -> None:
    lines = ("plan --budget int4", "plan --budget int4 --out mine.json", "emit --plan mine.json")
    shown, written, built = answered(lines, work).values()
    assert shown["exit_code"] == written["exit_code"] == 0, shown["error"]
    assert (shown["file"], written["file"]) == (None, "mine.json")
    assert shown["formats"] == written["formats"]
    assert built["error"]["kind"] == "ModuleNotFoundError"
    (work / "mine.json").unlink()
