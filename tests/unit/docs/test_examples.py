"""What the documentation tells people to type is what the program understands."""

from __future__ import annotations

import itertools
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from qplan.cost.file_bytes import estimate_fixed
from qplan.planner.budget import Budget
from qplan.planner.planning import make_plan
from qplan.run.folder import RunFolder
from tests.support.commands import parses
from tests.support.documented import DOCS, ROOT
from tests.support.invented_table import make_table

_BLOCK = re.compile(r"```sh\n(.*?)```", re.DOTALL)
_ENDS = ("|", "||", ">", "2>", ";", "&&")


def examples(path: Path) -> list[list[str]]:
    """Arguments of every ``qplan`` command line in the shell blocks of a page."""
    found = []
    for block in _BLOCK.findall(path.read_text(encoding="utf-8")):
        for line in block.splitlines():
            start = re.match(r"\s*(?:if ! )?qplan (.*)", line)
            if start is None:
                continue
            words = shlex.split(start[1].replace("; then", " ;"), comments=True)
            end = next((index for index, word in enumerate(words) if word in _ENDS), len(words))
            found.append(words[:end])
    return found


PAGES = [path for path in [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))] if examples(path)]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_command_line_is_understood(path: Path) -> None:
    for words in examples(path):
        parses(words)


def test_every_command_in_the_tables_of_other_tools_is_understood_as_it_stands() -> None:
    text = (DOCS / "guides" / "coming-from.md").read_text(encoding="utf-8")
    lines = [line for line in re.findall(r"`qplan ([^`]+)`", text) if " " in line]
    assert len(lines) > 20
    for line in lines:
        words = [{"...": "anything", "PATTERN=fp16": "*=fp16"}.get(word, word) for word in shlex.split(line)]
        parses(words)
        for option, budget in itertools.pairwise(words):
            if option == "--budget" and budget != "anything":
                Budget.parse(budget)


def test_there_are_examples_of_every_kind() -> None:
    assert len(PAGES) > 8
    used = {words[0] for path in PAGES for words in examples(path)}
    assert used >= {"analyze", "emit", "frontier", "profile", "explain", "plan", "check", "ladder", "compat"}


@pytest.mark.parametrize("page", ["guides/jupyter.md", "reference/python.md"])
def test_the_code_that_explores_runs(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, table = RunFolder(tmp_path / "qplan-runs" / "my-model"), make_table()
    table.write(run.sensitivity)
    make_plan(table, Budget.parse("int8"), estimate_fixed(table.model)).write(run.budget("int8") / "plan.json")
    monkeypatch.chdir(tmp_path)
    text = (DOCS / page).read_text(encoding="utf-8")
    (block,) = [code for code in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "open_run" in code]
    names: dict[str, Any] = {}
    exec(compile(block, page, "exec"), names)
    assert names["run"].folder.resolve() == run.folder
