"""Tries damaged and hostile inputs by the thousand, and counts how commands end.

    python -m reports.faults.fuzz [--cases 10000] [--seed 0]

Writes ``fuzz.json`` and ``fuzz.md`` into ``reports/faults``. Each block of cases has a seed of its own and runs in a
process of its own, so that a native crash costs a block and is told with its case; ``--seed N --cases 1`` runs the
block of seed N alone, and prints what fails.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"  # read when huggingface_hub is imported

from hypothesis import HealthCheck, Phase, given, seed, settings

from qplan.artifact import versions
from reports.faults.fuzz import page
from reports.faults.fuzz.bench import Bench
from reports.faults.fuzz.cases import Case, cases
from reports.faults.fuzz.judge import Judge, Verdict

HOME = Path(__file__).parents[1]
BLOCK = 500
_MOST_BYTES = 8 << 30
"""Address space of a block: what reads a hostile file whole then fails at once, without hurting the machine."""

"""Cases of one seed and process."""


def main() -> None:
    """Run all blocks and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0, help="of the first block")
    parser.add_argument("--block", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=HOME)
    arguments = parser.parse_args()
    if arguments.block is not None:
        run_block(Bench(arguments.block), arguments.seed, arguments.cases)
        return
    began = time.monotonic()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="fuzz-") as temporary:
        bench = Path(temporary) / "bench"
        bench.mkdir()
        Bench.make(bench)
        for block in itertools.count(arguments.seed):
            rows += in_child(bench, block, min(BLOCK, arguments.cases - len(rows)))
            results = counted(rows) | {"seconds": round(time.monotonic() - began), "seed": arguments.seed}
            # after every block: whoever stops it has what was tried so far
            (arguments.out / "fuzz.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
            (arguments.out / "fuzz.md").write_text(page.page(results), encoding="utf-8")
            print(f"{len(rows)} cases, {results['seconds']} s, {len(results['faults'])} faults", flush=True)
            if len(rows) >= arguments.cases:
                return


def in_child(bench: Path, first_seed: int, count: int) -> list[dict[str, Any]]:
    """Run a block in a process of its own; one that dies names the case that it died of."""
    command = [sys.executable, "-m", "reports.faults.fuzz", "--seed", str(first_seed), "--cases", str(count), "--block"]
    with tempfile.TemporaryFile("w+") as printed:
        code = subprocess.run([*command, str(bench)], stdout=printed, check=False).returncode
        printed.seek(0)
        rows: list[dict[str, Any]] = []
        last = ""
        for line in printed:
            found = json.loads(line)
            last = found if isinstance(found, str) else ""
            if not isinstance(found, str):
                rows.append(found | {"seed": first_seed})
    if code:
        kind = last.partition("]")[0].strip("[")
        rows.append(
            {
                "kind": kind,
                "command": "",
                "code": code,
                "faults": ["the process died"],
                "case": last,
                "seed": first_seed,
            }
        )
    for row in rows:
        if row["faults"]:
            print(json.dumps(row, ensure_ascii=True), flush=True)
    return rows


def run_block(bench: Bench, first_seed: int, count: int) -> None:
    """Run a block and print a JSON line before every case, and one after it."""
    resource.setrlimit(resource.RLIMIT_AS, (_MOST_BYTES, _MOST_BYTES))
    with tempfile.TemporaryDirectory(prefix="fuzz-") as temporary:
        judge = Judge(bench, Path(temporary))
        stdout = os.fdopen(os.dup(1), "w")
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # native code may print as well

        def tell(value: object) -> None:
            stdout.write(json.dumps(value) + "\n")
            stdout.flush()

        @seed(first_seed)
        @settings(
            max_examples=count,
            database=None,
            deadline=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(cases(bench))
        def one(case: Case) -> None:
            tell(str(case))
            tell(row_of(judge.try_(case)))

        one()


def row_of(verdict: Verdict) -> dict[str, Any]:
    """What is kept of a case; all of it if something is wrong."""
    case, outcome = verdict.case, verdict.outcome
    row: dict[str, Any] = {"kind": case.kind, "command": case.line[0] if case.line else "", "code": outcome.code}
    row |= {"faults": verdict.faults, "seconds": round(outcome.seconds, 3)}
    if verdict.faults:
        row |= {"case": str(case), "stderr": outcome.stderr[-3000:]}
    return row


def counted(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Counts by kind and exit code, and everything that went wrong."""
    codes: dict[str, Counter[str]] = {}
    for row in rows:
        codes.setdefault(row["kind"], Counter())[str(row["code"])] += 1
    return {
        "cases": len(rows),
        "versions": versions(),
        "codes": {kind: dict(sorted(found.items())) for kind, found in sorted(codes.items())},
        "slowest_s": max(row.get("seconds", 0.0) for row in rows),
        "faults": [row for row in rows if row["faults"]],
    }


if __name__ == "__main__":
    main()
