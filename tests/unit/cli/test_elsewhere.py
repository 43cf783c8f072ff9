"""Every option that an error names is one that people can give, and they are told to which command."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer.main

from qplan.cli.elsewhere import options_of, with_homes
from qplan.cli.main import app
from tests.support.command import qplan
from tests.support.commands import commands
from tests.support.documented import ROOT
from tests.support.tiny_models import words

OWNERS = options_of(typer.main.get_command(app))

OTHERS = frozenset(
    {
        *("--abi", "--dest", "--disable-pip-version-check", "--implementation", "--no-deps", "--only-binary"),  # pip
        *("--platform", "--python-version"),
        *("--format", "--print-architecture", "--print-uris", "--fsys-tarfile"),  # apt-get and dpkg
        *("--help", "--version", "--install-completion", "--show-completion"),  # of every program
        "--clear",  # venv
        *("--address", "--head"),  # ray start
        *("--export", "--hqq", "--path", "--sym"),  # llmexport
    }
)
"""Options of other programs without an underscore, which is how qplan's are told from most of them."""


def spoken() -> Iterator[tuple[str, str]]:
    """Every text in the package that is no docstring, with its place."""
    for path in sorted((ROOT / "qplan").rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        quiet = {
            id(line.value)
            for node in ast.walk(tree)
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
            for line in node.body
            if isinstance(line, ast.Expr)
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in quiet:
                yield f"{path.relative_to(ROOT)}:{node.lineno}", node.value


def named(text: str) -> list[str]:
    return re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*(?![\w-]*[A-Z_=])", text)


def test_every_option_that_a_message_names_exists() -> None:
    unknown = {(place, option) for place, text in spoken() for option in named(text) if option not in OWNERS}
    assert {(place, option) for place, option in unknown if option not in OTHERS} == set()


@pytest.mark.parametrize("command", commands())
def test_an_option_that_the_command_lacks_comes_with_one_that_has_it(command: str) -> None:
    for _, text in spoken():
        told = with_homes(text, command, OWNERS)
        assert told.startswith(text.removesuffix("."))
        for option in (option for option in named(text) if option in OWNERS):
            homes = OWNERS[option]
            names = [home if home in {"analyze", "emit"} else f"qplan {home}" for home in homes]
            assert command in homes or any(re.search(rf"\b{name}\b", told) for name in names), (option, told)


def test_what_is_told_reads_as_a_sentence() -> None:
    text = "give a longer text or lower --samples or --seq-len"
    assert with_homes(text, "analyze", OWNERS) == text
    assert with_homes(text, "quantize", OWNERS) == (
        f"{text}. --samples and --seq-len are options of 'qplan analyze': give them there, then go on with "
        "'qplan emit'; the run is the same"
    )
    small = "budget 1kB is below the smallest plan, 2 MB; raise it or lower --logits-bits"
    assert with_homes(small, "quantize", OWNERS) == (
        f"{small}. --logits-bits is an option of 'qplan emit': give it there; the run is the same"
    )
    assert with_homes("run 'qplan analyze' with --restart", "emit", OWNERS) == "run 'qplan analyze' with --restart"
    assert with_homes("llmexport lacks --disable_transformer_c4", "quantize", OWNERS).endswith("_c4")


def test_quantize_names_the_command_whose_option_an_error_is_about(
    model_folders: dict[str, Path], tmp_path: Path
) -> None:
    (tmp_path / "short.txt").write_text(words(90))
    done = qplan("quantize", str(model_folders["qwen2"]), "--calib", "short.txt", "--json", folder=tmp_path)
    assert done.returncode == 2
    for said in (done.stderr, done.document["error"]["message"]):
        assert "--samples and --seq-len are options of 'qplan analyze'" in said.replace("\n", " ")


def test_an_option_of_another_command_is_named_with_it(tmp_path: Path) -> None:
    done = qplan("quantize", "model", "--samples", "8", folder=tmp_path)
    assert done.returncode == 2
    assert "No such option: --samples. --samples is an option of 'qplan analyze': give it there" in done.stderr
    assert "is an option of" not in qplan("quantize", "model", "--sample-it", "8", folder=tmp_path).stderr
