"""The notebooks from top to bottom, and what they rest on, on a run that was just made."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import qplan
from notebooks.render import NOTEBOOKS, execute, markdown
from qplan.errors import InputError
from qplan.explore import Run
from tests.support.command import succeed


@pytest.fixture(scope="module")
def built(analyzed: Callable[[str], Path]) -> Path:
    """A run with two budgets that were built."""
    folder = analyzed("tied_model_dir")
    for budget in ("int8", "int4"):
        if not (folder / "run" / budget / "verification.json").is_file():
            succeed("emit", "--run", "run", "--budget", budget, "--tokens", "256", folder=folder)
    return folder / "run"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_from_top_to_bottom_without_warnings(
    built: Path, path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    done = execute(path, built)
    outputs = [output for cell in done.cells if cell.cell_type == "code" for output in cell.outputs]
    told = [output.text for output in outputs if output.get("name") == "stderr"]
    assert told == []
    drawn = sum("image/png" in output.get("data", {}) for output in outputs)
    assert drawn >= 3
    page, pictures = markdown(done, path.stem)
    assert len(pictures) == drawn
    assert all(f"]({name})" in page for name in pictures)


def test_losses_of_single_tokens_are_those_of_the_whole_text(built: Path) -> None:
    run = qplan.open_run(built)
    view = run.plan("int4")
    assert view.measured is not None
    losses = run.token_losses("int4")
    assert losses.kl_nats["low"].mean() == pytest.approx(view.measured.kl_nats, rel=1e-5)
    assert sum(map(len, losses.tokens)) == view.measured.tokens
    frame = run.tokens("int4")
    assert len(frame) == view.measured.tokens
    assert frame["low_nats"].mean() == pytest.approx(view.measured.kl_nats, rel=1e-5)
    kept = sorted(path.name for path in (built / "baselines").glob("*-token-losses.json"))
    assert {"fp16-token-losses.json", "int4-token-losses.json", "int8-token-losses.json"} <= set(kept)
    uniform = run.verification.query("budget == 'int4' and model == 'int4' and memory == 'low' and path == 'prefill'")
    written = json.loads((built / "baselines" / "int4-token-losses.json").read_text())
    assert written["kind"] == "qplan-token-losses"
    assert len(uniform) == 1


def test_the_error_of_all_layers_is_that_of_the_model(built: Path) -> None:
    run = qplan.open_run(built)
    errors = run.error_by_layer("int4", tokens=48)
    assert list(errors["layers"]) == [0, 1, 2]
    assert np.isfinite(errors["kl_nats"]).all()
    calibration_row = errors["kl_nats"].iloc[-1]
    assert view_kl(run) / 5 < calibration_row < view_kl(run) * 5


def view_kl(run: Run) -> float:
    """What the engine measured on held-out text, nats per token."""
    measured = run.plan("int4").measured
    assert measured is not None
    return measured.kl_nats


def test_a_built_model_talks(built: Path) -> None:
    run = qplan.open_run(built)
    with run.engine("int4") as engine:
        assert "".join(engine.generate([1, 2, 3], 4))
    with pytest.raises(InputError, match="no plan '3bpw'"):
        run.engine("3bpw")


def test_activations_are_what_the_model_computes(built: Path) -> None:
    run = qplan.open_run(built)
    left = run.plot_activations("0.self_attn.q_proj", tokens=64).axes[0]
    assert "inputs of 64 tokens, 128 features" in left.get_title(loc="left")
