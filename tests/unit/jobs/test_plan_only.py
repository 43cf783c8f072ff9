"""An emit that builds nothing needs neither the model nor torch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from qplan.explore import open_run
from qplan.run.calibration import CalibrationSet
from qplan.run.folder import RunFolder
from qplan.run.plan import Plan
from tests.support.command import qplan
from tests.support.invented_table import make_table

WITHOUT = (
    "import sys; sys.modules.update(dict.fromkeys(('torch', 'transformers', 'MNN', '_mnncengine'))); "
    "from qplan.cli.main import main; main()"
)


@pytest.fixture
def run(model_folders: dict[str, Path], tmp_path: Path) -> RunFolder:
    """An invented analysis of a model that is there."""
    found, table = RunFolder(tmp_path / "run"), make_table()
    source = str(model_folders["qwen2"].resolve())
    replace(table, model=replace(table.model, source=source)).write(found.sensitivity)
    rows = np.arange(4 * 16, dtype=np.int64).reshape(4, 16)
    CalibrationSet(rows[:2], rows[2:3], rows[3:], "invented", None, 0, "e" * 64).write(found.calibration)
    return found


def emit(run: RunFolder, *arguments: str) -> dict[str, object]:
    """What ``emit --no-build`` answers where nothing heavy can be imported."""
    line = [sys.executable, "-c", WITHOUT, "emit", "--no-build", "--run", "run", *arguments, "--json"]
    done = subprocess.run(line, cwd=run.folder.parent, capture_output=True, text=True, check=False, env=os.environ)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert isinstance(found, dict)
    return found


def test_the_plan_and_its_configs_are_written_without_torch(run: RunFolder) -> None:
    found = emit(run, "--budget", "int8")
    plan = Plan.read(run.budget("int8") / "plan.json")
    assert plan.formats == open_run(run.folder).solve("int8").plan.formats
    config = json.loads((run.budget("int8") / "quant_config.json").read_text())
    assert set(config) == {tensor.op_name for tensor in plan.tensors}
    for tensor in plan.tensors:
        assert config[tensor.op_name]["bits"] == tensor.format.bits
    assert found["verified"] is None
    assert "not built" in (run.budget("int8") / "report.md").read_text(encoding="utf-8").lower()


def test_a_given_plan_is_counted_again(run: RunFolder) -> None:
    emit(run, "--budget", "int8")
    document = json.loads((run.budget("int8") / "plan.json").read_text())
    document["tensors"][0]["format"] = "fp16"
    (run.folder.parent / "mine.json").write_text(json.dumps(document))
    found = emit(run, "--plan", "mine.json")
    plan = Plan.read(run.folder / "mine" / "plan.json")
    assert plan.tensors[0].format.name == "fp16"
    assert found["total_bytes"] == plan.files.total > document["files"]["weight"]


def test_for_another_engine_it_has_a_folder_of_its_own(run: RunFolder) -> None:
    emit(run, "--budget", "int8", "--engine", "3.5.0")
    assert Plan.read(run.folder / "int8-mnn-3.5.0" / "plan.json").engine == "3.5.0"


def test_there_is_nothing_to_foretell(run: RunFolder) -> None:
    refused = qplan("emit", "--no-build", "--dry-run", "--run", "run", folder=run.folder.parent)
    assert refused.returncode == 2
    assert "leave one of them out" in refused.stderr
