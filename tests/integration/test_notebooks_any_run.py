"""The notebooks on runs of other models than the demo's: other formats, rounding, budgets and folders."""

from __future__ import annotations

from pathlib import Path

import pytest

from notebooks.render import NOTEBOOKS, execute
from tests.support.command import succeed
from tests.support.tiny_models import save_model

RUNS: dict[str, tuple[str, tuple[str, ...], str]] = {
    # untied, widths that blocks don't divide, three formats without int8 of the default blocks
    "llama": ("llama", ("--formats", "fp16,int8-b32,int4", "--effort", "quick"), "70%"),
    # per-head norms; floats, one width, nothing fitted to tokens, no int8 activations
    "qwen3": ("qwen3", ("--formats", "fp16,int5", "--rounding", "rtn", "--memory", "normal"), "fp16"),
}


@pytest.fixture(scope="module", params=sorted(RUNS))
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run in a folder of another name with one built plan."""
    kind, options, budget = RUNS[request.param]
    folder = tmp_path_factory.mktemp(kind) / "模型 of mine"
    folder.mkdir()
    save_model(kind, folder / kind)
    calibration = ("--samples", "4", "--seq-len", "64", "--fit-tokens", "512")
    succeed("analyze", kind, *calibration, *options, "--run", "elsewhere/my run", folder=folder)
    run = folder / "elsewhere" / "my run"
    succeed("emit", "--run", str(run), "--budget", budget, "--tokens", "128", "--repair", "0", folder=folder)
    return run


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_on_any_run(built: Path, path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    done = execute(path, built)
    outputs = [output for cell in done.cells if cell.cell_type == "code" for output in cell.outputs]
    assert [output.text for output in outputs if output.get("name") == "stderr"] == []
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 3
