from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer.main
from typer.testing import CliRunner

from qplan.cli.main import app

README = Path(__file__).parents[3] / "README.md"


def commands() -> dict[str, list[str]]:
    found = {}

    def walk(group: Any, above: str) -> None:
        for name, command in group.commands.items():
            if hasattr(command, "commands"):
                walk(command, f"{above}{name} ")
            else:
                options = [option for parameter in command.params for option in parameter.opts]
                found[above + name] = [option for option in options if option.startswith("--")]

    walk(typer.main.get_command(app), "")
    return found


@pytest.mark.parametrize("name", commands())
def test_every_command_and_option_is_in_the_readme(name: str) -> None:
    text = README.read_text(encoding="utf-8")
    assert f"qplan {name}" in text
    missing = [option for option in commands()[name] if not re.search(rf"`{option}\b", text)]
    assert not missing


@pytest.mark.parametrize("name", commands())
def test_help_shows_an_example_or_says_what_it_does(name: str) -> None:
    result = CliRunner().invoke(app, [*name.split(), "--help"])
    assert result.exit_code == 0
    assert "qplan" in result.stdout


def qplan(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from qplan.cli.main import main; main()", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=300)


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
    result = qplan(*arguments, folder=tmp_path)
    assert result.returncode == code
    assert words in " ".join(result.stderr.split())
    assert "Traceback" not in result.stderr
    assert not list(tmp_path.iterdir())


def test_help_does_not_import_torch() -> None:
    code = "import sys, qplan.cli.main; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=300).returncode == 0
