"""A model whose window the exporter drops: refused, or built with its context limited to the window."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import qplan
from qplan.errors import InputError
from qplan.jobs.skeletons import run_skeleton
from qplan.mnn.files import CONTEXT_KEY, LLM_CONFIG_FILE
from qplan.mnn.preflight import check_folder
from qplan.model.load import load_model
from qplan.model.specimen import save_specimen
from qplan.run.folder import RunFolder
from qplan.run.plan import Plan
from qplan.run.verification import Verification
from tests.support.command import qplan as run_qplan
from tests.support.command import succeed
from tests.support.tiny_models import words

pytestmark = pytest.mark.engine

WINDOW = 96
QUICK = ("--mode", "gradient", "--fold", "off", "--rounding", "rtn", "--samples", "2", "--seq-len", "64")


def test_a_window_is_refused_at_the_door_or_becomes_the_built_models_context(tmp_path: Path) -> None:
    model = save_specimen("mistral-sliding-window", tmp_path / "hf", sliding_window=WINDOW)
    (tmp_path / "text.txt").write_text(words(2000))
    analyze = ("analyze", str(model), "--calib", "text.txt", "--run", "run", "--formats", "fp16,int8", *QUICK)
    refused = run_qplan(*analyze, folder=tmp_path)
    assert refused.returncode == 2
    assert f"sliding_window {WINDOW}" in refused.stderr
    assert f"--max-context {WINDOW}" in refused.stderr
    assert not (tmp_path / "run").exists()
    succeed(*analyze, "--max-context", str(WINDOW), folder=tmp_path)
    succeed("emit", "--run", "run", "--tokens", "128", "--repair", "0", folder=tmp_path)
    plan = Plan.read(tmp_path / "run" / "int8" / "plan.json")
    assert {note.code for note in plan.notes} >= {"context-limited", "setting-beyond-context"}
    proof = Verification.read(tmp_path / "run" / "int8" / "verification.json")
    assert proof.passed
    assert "preflight" in {check.promise.code for check in proof.checks}
    run = RunFolder(tmp_path / "run")
    assert check_folder(run.folder / "skeleton").context == WINDOW
    # another limit costs no other export
    run_skeleton(run, load_model(str(model)).within(WINDOW - 1), None, pytest.fail)
    assert check_folder(run.folder / "skeleton").context == WINDOW - 1
    built = tmp_path / "run" / "int8" / "model"
    assert json.loads((built / LLM_CONFIG_FILE).read_text(encoding="utf-8"))[CONTEXT_KEY] == WINDOW
    with qplan.Engine(built) as engine:
        assert engine.context == WINDOW
        assert len(engine.logits(list(range(1, WINDOW + 1)))) == WINDOW
        with pytest.raises(InputError, match=str(WINDOW)):
            engine.logits(list(range(1, WINDOW + 2)))
