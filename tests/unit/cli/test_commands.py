"""The command line: mistakes, help, completion, and how fast it starts."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from qplan.cli import completion, entry
from qplan.cli.main import app, main
from tests.support.command import qplan
from tests.support.commands import commands, parses
from tests.support.invented_run import small_run

ROOT = Path(__file__).parents[3]
_EXAMPLE = re.compile(r"^ *(qplan .*)$", re.MULTILINE)


@pytest.mark.parametrize("name", commands())
def test_help_shows_examples_that_the_program_understands(name: str) -> None:
    shown = CliRunner().invoke(app, [*name.split(), "--help"], env={"COLUMNS": "200", "NO_COLOR": "1"})
    assert shown.exit_code == 0
    examples = [line.rstrip() for line in _EXAMPLE.findall(shown.stdout)]
    assert any(line.startswith(f"qplan {name}") for line in examples)
    for line in examples:
        parses(shlex.split(line)[1:])


@pytest.mark.parametrize("name", commands())
def test_only_the_terminal_breaks_the_lines_of_a_paragraph(name: str) -> None:
    shown = CliRunner().invoke(app, [*name.split(), "--help"], env={"COLUMNS": "1000", "NO_COLOR": "1"}).stdout
    told = shown.partition("Usage:")[2].partition("Examples:")[0].splitlines()[1:]
    assert all(line.endswith((".", "?")) for line in map(str.strip, told) if line)


def test_efforts_are_what_the_user_sees_and_modes_still_work() -> None:
    shown = CliRunner().invoke(app, ["analyze", "--help"], env={"COLUMNS": "200", "NO_COLOR": "1"}).stdout
    assert "--effort" in shown
    assert "<quick|default|thorough>" in shown
    assert "<auto|gradient|measured>" not in shown
    for mode in ("auto", "gradient", "measured"):
        parses(["analyze", "model", "--mode", mode])


@pytest.mark.parametrize("columns", [80, 120])
@pytest.mark.parametrize("name", commands())
def test_help_fits_its_terminal_and_its_options_stand_in_panels(name: str, columns: int, tmp_path: Path) -> None:
    shown = qplan(*name.split(), "--help", folder=tmp_path, columns=columns)
    assert max(map(len, shown.stdout.splitlines())) <= columns
    assert "╭─ Output ─" in shown.stdout
    assert "…" not in shown.stdout
    for option in ("--quiet", "--json", "--help"):
        assert option in shown.stdout.partition("╭─ Output ─")[2]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["analyze", "no-such-folder/model"], 2, "no-such-folder/model"),
        (["analyze", "x", "--formats", "int7"], 2, "7 bits"),
        (["analyze", "x", "--batch-size", "0"], 2, "at least 1"),
        (["analyze", "x", "--dtype", "float16"], 2, "use --mode gradient or --dtype float32"),
        (["emit"], 2, "qplan analyze"),
        (["emit", "--run", "nothing"], 2, "qplan analyze"),
        (["emit", "--pin", "abc", "--run", "x"], 2, "PATTERN=VALUE"),
        (["emit", "--min-bits", "*=x", "--run", "x"], 2, "whole number"),
        (["emit", "--threads", "0"], 2, "at least 1"),
        (["emit", "--budgets", "int4"], 2, "--budget"),
        (["frontier"], 2, "qplan analyze"),
        (["frontier", "--logits-bits", "-1", "--run", "x"], 2, "0 (no rule)"),
        (["explain", "int4"], 2, "qplan analyze"),
        (["report"], 2, "qplan analyze"),
        (["report", "--lang", "fr"], 2, "'fr' is not one of 'en', 'zh'"),
        (["emit", "--lang", "fr"], 2, "'fr' is not one of 'en', 'zh'"),
        (["plan", "diff", "int4", "int8"], 2, "qplan analyze"),
    ],
)
def test_bad_input_has_a_message_and_an_exit_code(tmp_path: Path, arguments: list[str], code: int, words: str) -> None:
    result = qplan(*arguments, folder=tmp_path, columns=200)
    assert result.returncode == code
    assert words in " ".join(result.stderr.split())
    assert "Traceback" not in result.stderr
    assert not list(tmp_path.iterdir())


def test_a_pressed_ctrl_c_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("qplan.compat.table.CompatTable.read", interrupted)
    for arguments in (["compat"], ["compat", "--quiet"]):
        done = qplan(*arguments, folder=tmp_path)
        assert done.returncode == 130
        assert "run the same command again to resume" in done.stderr
    assert qplan("compat", "--json", folder=tmp_path).document["error"]["kind"] == "InterruptedCommand"


HEAVY = "'torch', 'transformers', 'numpy', 'scipy', 'pyarrow', 'matplotlib', 'jinja2', 'datasets', 'MNN'"


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (MemoryError(), "no memory is left for this command: out of memory."),
        (
            RuntimeError("alloc_cpu.cpp:118: can't allocate memory: 8 bytes\nmore"),
            "can't allocate memory: 8 bytes. Free",
        ),
    ],
)
def test_a_lack_of_memory_is_told(
    error: Exception, told: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_arguments: object, **_options: object) -> None:
        raise error

    monkeypatch.setattr("qplan.cli.main.app", fail)
    with pytest.raises(SystemExit) as ended:
        main(["check", "model"])
    assert ended.value.code == 2
    assert told in " ".join(capsys.readouterr().err.split())


def test_help_and_completion_import_nothing_heavy() -> None:
    code = f"import sys, qplan.cli.main; print(sorted({{{HEAVY}}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout == "[]\n"


def complete(line: str, folder: Path) -> list[str]:
    """What bash is told when tab is pressed at the end of a line."""
    words = line.split(" ")
    environment = os.environ | {
        "_QPLAN_COMPLETE": "complete_bash",
        "COMP_WORDS": line,
        "COMP_CWORD": str(len(words) - 1),
    }
    code = "from qplan.cli.main import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert not done.stderr
    return done.stdout.split()


def test_the_shell_completes_commands_options_and_values(tmp_path: Path) -> None:
    assert set(complete("qplan ", tmp_path)) == {name.split()[0] for name in commands()}
    assert complete("qplan emit --max-d", tmp_path) == ["--max-decode-ms"]
    assert complete("qplan emit --budget int", tmp_path) == ["int8", "int4"]


def test_values_are_completed_from_what_lies_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert completion.plans("") == completion.runs("") == completion.tensors("") == []
    plan = tmp_path / "qplan-runs" / "mine" / "int4" / "plan.json"
    made = small_run().plan
    replace(made, tensors=tuple(t for t in made.tensors if t.layer is None or t.kind == "up_proj")).write(plan)
    (tmp_path / "qplan-runs" / "mine" / "sensitivity.parquet").touch()
    (tmp_path / "models" / "tiny").mkdir(parents=True)
    (tmp_path / "models" / "tiny" / "config.json").touch()
    assert completion.runs("qplan-runs/m") == ["qplan-runs/mine"]
    assert completion.plans("") == ["int4", "qplan-runs/mine/int4/plan.json"]
    assert completion.tensors("0.") == ["0.mlp.up_proj"]
    assert "lm_head" in completion.tensors("")
    assert completion.models("mod") == ["models/"]
    assert completion.models("models/") == ["models/tiny"]
    (tmp_path / "models" / "tiny" / "llm.mnn").touch()
    assert completion.mnn_folders("models/") == ["models/tiny"]
    assert completion.mnn_folders("qplan-runs/mine/") == ["qplan-runs/mine/int4/"]
    assert completion.calibrations("") == ["mixture", "python-stdlib"]
    assert completion.targets("arm-") == ["arm-dot", "arm-i8mm", "arm-sme2", "arm-v8"]
    assert [value for value, _ in completion.budgets("int8,i")] == ["int8,int8", "int8,int4"]
    plan.write_text("no plan")
    assert completion.tensors("") == []


def test_bash_completes_with_the_script_that_it_is_given(tmp_path: Path) -> None:
    program = tmp_path / "qplan"
    program.write_text(f"#!{sys.executable}\nfrom qplan.cli.main import main; main()\n")
    program.chmod(0o755)
    asked = "source <(_QPLAN_COMPLETE=source_bash qplan); COMP_WORDS=(qplan pr); COMP_CWORD=1; _qplan_completion qplan"
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHONPATH": ROOT.as_posix()}
    command = ["bash", "--norc", "-c", f'{asked}; echo "${{COMPREPLY[@]}}"']
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.split() == ["profile"], done.stderr


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_every_shell_has_a_script(shell: str, tmp_path: Path) -> None:
    environment = os.environ | {"_QPLAN_COMPLETE": f"source_{shell}"}
    command = [sys.executable, "-c", "from qplan.cli.main import main; main()"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)
    assert "_QPLAN_COMPLETE" in done.stdout


def test_version() -> None:
    from qplan import __version__

    assert CliRunner().invoke(app, ["--version"]).stdout == f"qplan {__version__}\n"


@pytest.mark.parametrize("name", commands())
def test_usage_names_arguments_as_everybody_writes_them(name: str, tmp_path: Path) -> None:
    shown = qplan(*name.split(), "-h", folder=tmp_path, columns=120)
    assert shown.stdout == qplan(*name.split(), "--help", folder=tmp_path, columns=120).stdout
    usage = next(line for line in shown.stdout.splitlines() if "Usage:" in line)
    assert re.fullmatch(rf" Usage: qplan {name}( \[OPTIONS\])?( \[?[A-Z]+\]?)*( COMMAND \[ARGS\]\.\.\.)? *", usage)


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("emit --threads many", "'many' is no whole number, e.g. 10"),
        ("emit --max-kl small", "'small' is no number, e.g. 0.5"),
        ("emit --metric beauty", "for '--metric': 'beauty' is not one of 'kl'"),
        ("explain", "Missing argument 'PLAN'"),
    ],
)
def test_a_wrong_word_is_told_in_plain_words(line: str, told: str, tmp_path: Path) -> None:
    stderr = " ".join(qplan(*line.split(), folder=tmp_path, columns=200).stderr.split())
    assert told in stderr
    assert "Value error" not in stderr
    assert "Input should" not in stderr


def test_threads_that_wait_sleep_soon_unless_the_user_says_how(monkeypatch: pytest.MonkeyPatch) -> None:
    for given, found in (
        ({}, entry.SPINS),
        ({"GOMP_SPINCOUNT": "7"}, "7"),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, None),
    ):
        environment = dict(given)
        with monkeypatch.context() as patch:
            patch.setattr(os, "environ", environment)
            entry.share_processors()
        assert environment.get("GOMP_SPINCOUNT") == found
