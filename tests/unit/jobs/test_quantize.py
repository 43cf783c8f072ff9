"""How thorough an analysis is to be, and where a built model may go."""

from __future__ import annotations

import shlex
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest

from qplan.choosing.request import PlanRequest
from qplan.errors import InfeasibleError, InputError
from qplan.jobs import quantize
from qplan.jobs.checks import check_out
from qplan.jobs.options import AnalyzeOptions, QuantizeOptions
from qplan.jobs.quantize import Audience, choose_effort, choose_fold, give_out, run_quantize
from qplan.planner.budget import parse_budgets
from qplan.planner.rules import Rules
from qplan.run.folder import RunFolder
from qplan.run.journal import Journal
from tests.support.commands import parses


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


@pytest.mark.parametrize("place", ["file/out", "link/out"])
def test_a_place_where_no_folder_can_be_is_refused_at_the_start(place: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"cannot be made: .* is no folder; name another one"):
        check_out(tmp_path / place)


def test_a_folder_that_cannot_be_written_is_refused_at_the_start() -> None:
    with pytest.raises(InputError, match=r"OUT /proc/out cannot be made: /proc: .*; name another one"):
        check_out(Path("/proc/out"))


def test_the_folder_that_is_given_out_is_named_after_model_and_budget(tmp_path: Path) -> None:
    wanted = PlanRequest(budgets=parse_budgets(["300MB"]))
    assert QuantizeOptions(model="org/Name").out_folder == Path("Name-int4-MNN")
    assert QuantizeOptions(model="org/Name", wanted=wanted, run=tmp_path / "r").out_folder == Path("r-300mb-MNN")
    assert QuantizeOptions(model="org/Name", out=tmp_path).out_folder == tmp_path


def test_the_command_line_that_a_report_tells_asks_for_the_same(tmp_path: Path) -> None:
    wanted = PlanRequest(budgets=parse_budgets(["int8"]), rules=Rules.parse(target="phone"))
    options = QuantizeOptions(
        model="my model", out=tmp_path, wanted=wanted, effort="quick", max_context=512, max_memory_bytes=10**9
    )
    assert QuantizeOptions(model="org/Name").command == "qplan quantize org/Name"
    line = f"qplan quantize 'my model' {tmp_path} --budget int8 --target phone --effort quick"
    assert options.command == f"{line} --max-context 512 --max-memory 1000000000B"
    parses(shlex.split(options.command)[1:])


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


def test_folds_are_trained_for_eight_bits_where_that_takes_minutes(
    model_folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, options = RunFolder(tmp_path / "run"), AnalyzeOptions(model=str(model_folders["qwen2"]), seq_len=64)
    int8, others = parse_budgets(["int8"]), (parse_budgets(["int4"]), parse_budgets(["int8", "4bpw"]))
    assert choose_fold(options, run, int8).fold == "trained"
    assert all(choose_fold(options, run, budgets).fold == "auto" for budgets in others)
    with monkeypatch.context() as patch:
        patch.setattr(quantize, "PATIENCE_S", 1e-9)
        assert choose_fold(options, run, int8).fold == "auto"
    run.folder.mkdir()
    run.fold_training.touch()  # it was begun so
    assert choose_fold(options, run, others[0]).fold == "trained"
    run.fold_training.unlink()
    with Journal(run.journal, {"fold": "auto"}):
        pass
    assert choose_fold(options, run, int8).fold == "auto"
    assert choose_fold(replace(options, restart=True), run, int8).fold == "trained"


def test_a_budget_that_is_too_small_is_refused_before_the_analysis(
    model_folders: dict[str, Path], tmp_path: Path
) -> None:
    def never(line: str) -> None:
        raise AssertionError(line)

    wanted = PlanRequest(budgets=parse_budgets(["1kB"]))
    options = QuantizeOptions(
        model=str(model_folders["qwen2"]), wanted=wanted, run=tmp_path / "run", out=tmp_path / "out"
    )
    with pytest.raises(InfeasibleError, match="budget 1kB is below the smallest plan"):
        run_quantize(options, Audience(never, never, lambda _: nullcontext(never)), "")  # type: ignore[arg-type]
    assert not (tmp_path / "run").exists()
