"""How thorough an analysis is to be, and where a built model may go."""

from __future__ import annotations

from pathlib import Path

import pytest

from qplan.errors import InputError
from qplan.jobs import quantize
from qplan.jobs.options import AnalyzeOptions
from qplan.jobs.quantize import check_out, choose_effort, give_out
from qplan.run.folder import RunFolder


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """What qplan builds, as far as it matters here: a large file, and settings."""
    folder = tmp_path / "run" / "model"
    folder.mkdir(parents=True)
    (folder / "llm.mnn").write_bytes(b"graph")
    (folder / "llm.mnn.weight").write_bytes(bytes(2 << 20))
    (folder / "config.json").write_text("{}")
    (folder / "checksums.json").write_text("{}")
    return folder


def test_a_model_is_given_out_and_replaced(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "out"
    give_out(model, out)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == {
        path.name: path.read_bytes() for path in model.iterdir()
    }
    assert (out / "llm.mnn.weight").samefile(model / "llm.mnn.weight")
    (out / "config.json").write_text('{"thread_num": 2}')
    assert (model / "config.json").read_text() == "{}"
    (out / "mine.txt").write_text("beside it")
    give_out(model, out)
    assert (out / "config.json").read_text() == "{}"


@pytest.mark.parametrize("there", ["file", "folder", "link"])
def test_nothing_else_is_replaced(there: str, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    if there == "file":
        out.write_text("mine")
    elif there == "folder":
        out.mkdir()
        (out / "thesis.txt").write_text("mine")
    else:
        out.symlink_to(tmp_path / "nowhere")
    with pytest.raises(InputError, match="name another one"):
        give_out(model, out)
    assert out.is_symlink() or out.exists()


def test_an_empty_folder_is_taken(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    check_out(tmp_path / "out")


def test_what_takes_long_is_analyzed_quickly(
    model_folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, options = RunFolder(tmp_path / "run"), AnalyzeOptions(model=str(model_folders["qwen2"]), seq_len=64)
    patient = choose_effort(options, run)
    assert patient.options.effort == "default"
    assert "effort default" in patient.told
    monkeypatch.setattr(quantize, "PATIENCE_S", 1e-9)
    hurried = choose_effort(options, run)
    assert hurried.options.effort == "quick"
    assert "--effort default takes about" in hurried.told
