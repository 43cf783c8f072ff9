"""Terminals that are not UTF-8, or have no width: something is shown, and nothing fails."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from qplan.cost.file_bytes import estimate_fixed
from qplan.planner.budget import Budget
from qplan.planner.planning import make_plan
from qplan.run.calibration import CalibrationSet
from qplan.run.folder import RunFolder
from tests.support.commands import commands
from tests.support.invented_table import make_table

NAME = "模型-é-\u200d-😀"


def run(folder: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-c", _MAIN, *words],
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        check=False,
        timeout=120,
    )


_MAIN = "from qplan.cli.main import main; main()"

ENCODINGS = ("ascii", "gbk", "latin-1")

_MANY = """
import json, sys
from qplan.cli.main import main
for line in sys.stdin:
    encoding, *words = json.loads(line)
    sys.stdout.reconfigure(encoding=encoding)
    sys.stderr.reconfigure(encoding=encoding)
    sys.argv = ["qplan", *words]
    try:
        main()
    except SystemExit as end:
        sys.stderr.write(f"code {end.code or 0}\\n")
"""

COMMANDS = {
    "analyze": 2,
    "analyze nowhere/{name}": 2,
    "explain int4 --run {name}": 0,
    "explain int4 *.q_proj --run {name}": 0,
    "plan diff int4 int8 --run {name}": 0,
    "report int8 --run {name} --lang zh": 0,
    "frontier --points 2 --run {name}": 0,
    "emit --budget 1kB --run {name}": 3,
    "emit --pin {name}=int4 --run {name}": 2,
    "emit --run {name} --text {name}.txt": 2,
    "ladder nowhere/{name} --run {name}": 2,
    "demo --budget {name}": 2,
    "check {name}": 2,
    "compat": 0,
    "nonsense {name}": 2,
}
"""What people type, and the exit code in any terminal."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a name that few encodings have."""
    (tmp_path / NAME).mkdir()
    (tmp_path / NAME / "llm.mnn").write_bytes(b"")
    return tmp_path


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_what_cannot_be_shown_is_replaced(folder: Path, encoding: str) -> None:
    done = run(folder, "check", NAME, PYTHONIOENCODING=encoding)
    assert done.returncode == 8
    assert b"Traceback" not in done.stderr
    assert b"missing-file" in done.stdout
    assert b"\\u200d" in done.stderr  # what none of these encodings has, visibly escaped


def test_json_keeps_names_in_any_encoding(folder: Path) -> None:
    done = run(folder, "check", NAME, "--json", PYTHONIOENCODING="ascii")
    assert json.loads(done.stdout)["model"] == NAME


@pytest.mark.parametrize("columns", ["0", "1", "1000000000000"])
def test_a_width_that_holds_no_sentence_is_no_width(folder: Path, columns: str) -> None:
    done = run(folder, "check", "--help", COLUMNS=columns)
    assert (done.returncode, b"Folder of an MNN model" in done.stdout) == (0, True)
    refused = run(folder, "check", "--engines", COLUMNS=columns)
    assert (refused.returncode, b"No such option" in refused.stderr) == (2, True)


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The parent of a run whose folder, model and text have that name."""
    folder = tmp_path_factory.mktemp("encodings")
    home = RunFolder(folder / NAME)
    table = make_table()
    table = replace(table, model=replace(table.model, source=NAME))
    table.write(home.sensitivity)
    rows = np.arange(4 * 16, dtype=np.int64).reshape(4, 16)
    CalibrationSet(rows[:2], rows[2:3], rows[3:], NAME, None, 0, "e" * 64).write(home.calibration)
    for budget in ("int4", "int8"):
        plan = make_plan(table, Budget.parse(budget), estimate_fixed(table.model))
        plan.write(home.budget(budget) / "plan.json")
    return folder


def test_every_command_in_any_terminal(run_folder: Path) -> None:
    lines = [[encoding, *line.format(name=NAME).split()] for encoding in ENCODINGS for line in COMMANDS]
    lines += [[ENCODINGS[0], *name.split(), "--help"] for name in commands()]
    done = subprocess.run(
        [sys.executable, "-c", _MANY],
        input="".join(json.dumps(line) + "\n" for line in lines).encode(),
        cwd=run_folder,
        env={**os.environ, "COLUMNS": "0"},
        capture_output=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert b"Traceback" not in done.stderr
    assert b"Warning" not in done.stderr
    codes = [int(line.split()[1]) for line in done.stderr.splitlines() if line.startswith(b"code ")]
    assert codes == [*COMMANDS.values()] * len(ENCODINGS) + [0] * len(commands()), done.stderr
    for encoding in ENCODINGS:
        assert f"{NAME}/int8/report.html".encode(encoding, "backslashreplace") in done.stdout
