"""Runs ``qplan emit`` here and on a Ray cluster of this machine, with a worker killed in the middle: the same bytes?

``python -m reports.ray.emit --work FOLDER`` writes emit.json and its section of README.md.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from reports.faults.bench import results_of
from reports.faults.processes import adopt_orphans, descendants
from tests.support.local_cluster import local_cluster
from tests.support.tiny_models import save_model, words

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
HEADING = "## `qplan emit --ray`"

MODELS = {"tied": "qwen2", "mixture of experts": "qwen3_moe"}
_ANALYZE = "--samples 6 --seq-len 32 --fit-tokens 512 --formats int8,int4,int3 --effort quick --batch-size 3"
_EMIT = "--budget int4 --repair 1 --tokens 64 --dynamic-option 0"
_PROGRAM = "import sys; from qplan.cli.main import main; sys.argv[0] = 'qplan'; main()"
_WORKER = "ray::perform"

Row = dict[str, Any]


def main() -> None:
    """Measure, and write the section."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--model", choices=tuple(MODELS), action="append")
    given = parser.parse_args()
    work = given.work.resolve()
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    adopt_orphans()
    (work / "text.txt").write_text(words(4000, seed=1), encoding="utf-8")
    rows = []
    with local_cluster() as cluster:
        for label in given.model or MODELS:
            rows.append(row_of(label, work, cluster.address))
            print(rows[-1], flush=True)
    (HERE / "emit.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    page = HERE / "README.md"
    page.write_text(with_section(page.read_text(encoding="utf-8")), encoding="utf-8")


def row_of(label: str, work: Path, address: str) -> Row:
    """One model, emitted here, on the cluster, and on the cluster while a worker is killed.

    The run folder is named from the folder that the command runs in, which is not the one that the cluster runs in.
    """
    home = work / MODELS[label]
    model = save_model(MODELS[label], home / "model")
    do(["analyze", str(model), "--calib", str(work / "text.txt"), *_ANALYZE.split(), "--run", "run"], home)
    places = {"here": [], "cluster": ["--ray", address], "killed": ["--ray", address]}
    row: Row = {"model": label}
    expected: dict[str, str] = {}
    for place, more in places.items():
        folder = home / place
        shutil.copytree(home / "run", folder / "run")
        begin = time.monotonic()
        told, killed = do(["emit", *_EMIT.split(), "--run", "run", *more], folder, kill=place == "killed")
        found = results_of(folder / "run", "int4")
        expected = expected or found
        tensors = sorted(path.name for path in (folder / "run" / "rounding").glob("tensors-*/*"))
        row |= {
            place: {
                "differs": sorted(name for name in {*found, *expected} if found.get(name) != expected.get(name)),
                "rounded": len(tensors),
                "killed": killed,
                "nodes": re.findall(r"Ray: .*", told),
                "seconds": round(time.monotonic() - begin, 1),
            }
        }
    return row


def do(words_: Sequence[str], folder: Path, *, kill: bool = False) -> tuple[str, int]:
    """Run a command to its end; returns what it told, and how many workers were killed meanwhile: one if asked to.

    Raises:
        RuntimeError: it failed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "300"}
    before = set(folder.glob("run/rounding/tensors-*/*"))
    killed = 0
    with (folder / "told.txt").open("wb") as stream:
        process = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM, *words_], cwd=folder, env=environment, stdout=stream, stderr=stream
        )
        while process.poll() is None:
            if kill and not killed and set(folder.glob("run/rounding/tensors-*/*")) - before:
                workers = [number for number, line in descendants().items() if line.startswith(_WORKER)]
                if workers:
                    os.kill(workers[0], signal.SIGKILL)
                    killed += 1
            time.sleep(0.005)
    told = (folder / "told.txt").read_text(encoding="utf-8")
    if process.returncode:
        msg = f"{' '.join(words_)} ended with {process.returncode}: {told[-1000:]}"
        raise RuntimeError(msg)
    return told, killed


def with_section(page: str) -> str:
    """A page with the section that `emit.json` makes, in place of the one that it has, before the plan on paper."""
    rest = re.sub(rf"{re.escape(HEADING)}.*?(?=^## )", "", page, flags=re.DOTALL | re.MULTILINE)
    first, paper, last = rest.partition("## On paper")
    return f"{first}{section()}{paper}{last}"


def section() -> str:
    """What `emit.json` says; nothing without it."""
    path = HERE / "emit.json"
    if not path.is_file():
        return ""
    rows: list[Row] = json.loads(path.read_text(encoding="utf-8"))
    lines = [
        f"| {row['model']} | {row['here']['rounded']} | {_same(row['cluster'])} | {_same(row['killed'])} | "
        f"{row['killed']['killed']} |"
        for row in rows
    ]
    return f"""{HEADING}

Written by `python -m reports.ray.emit --work FOLDER`. Tiny models are analyzed here (quick, with folding), then
`qplan emit {_EMIT}` runs three times: here, on a cluster of two nodes, and on it while a worker is killed (SIGKILL) as
soon as a tensor is rounded. The command runs in another folder than the cluster, and names the run by a relative path.
Compared are plan and every file of the built model, apart from the identifier that MNN's converter draws, and every
rounded tensor.

| model | rounded tensors | on the cluster | with a killed worker | workers killed |
|---|---:|---|---|---:|
{chr(10).join(lines)}

"""


def _same(found: Row) -> str:
    return "the same bytes" if not found["differs"] else f"other {', '.join(found['differs'])}"


if __name__ == "__main__":
    main()
