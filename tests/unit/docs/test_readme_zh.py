"""README.zh.md says what README.md says: the same commands, code and figures."""

from __future__ import annotations

import re

from tests.support.documented import ROOT

ENGLISH, CHINESE = ((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "README.zh.md"))
_BLOCK = re.compile(r"```(\w+)\n(.*?)```", re.DOTALL)
_FIGURE = re.compile(r"\d+(?:\.\d+)?(?:e-\d+)?")
_OURS = re.compile(r"(qplan|make) ")


def blocks(page: str, language: str) -> list[str]:
    """Code blocks of a language."""
    return [code for found, code in _BLOCK.findall(page) if found == language]


def commands(page: str) -> list[str]:
    """Command lines of qplan and make without what is said of them."""
    lines = [
        line.partition("  #")[0].partition("   #")[0].strip()
        for code in blocks(page, "sh")
        for line in code.splitlines()
    ]
    return [line for line in lines if _OURS.match(line)]


def table(page: str) -> list[list[str]]:
    """Rows of the first table, the heading first."""
    rows = re.search(r"(?:^\|.*\n)+", page, re.MULTILINE)
    assert rows is not None
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows[0].splitlines()]


def before(page: str, heading: str) -> str:
    """What stands before a heading."""
    assert f"\n## {heading}\n" in page
    return page.partition(f"\n## {heading}\n")[0]


def test_the_pages_lead_to_each_other() -> None:
    assert "[中文](README.zh.md)" in ENGLISH
    assert "[English](README.md)" in CHINESE


def test_the_same_commands_are_shown_in_the_same_order() -> None:
    first = commands(before(ENGLISH, "More"))
    assert len(first) >= 9
    extra = ["qplan report --lang zh"]
    assert [line for line in commands(CHINESE) if line not in extra] == first


def test_python_is_the_same() -> None:
    assert blocks(before(ENGLISH, "More"), "python") == blocks(CHINESE, "python") != []


def test_the_table_holds_the_same_figures() -> None:
    english, chinese = table(ENGLISH), table(CHINESE)
    assert [len(row) for row in english] == [len(row) for row in chinese]
    for ours, theirs in zip(chinese[2:], english[2:], strict=True):
        assert [_FIGURE.findall(cell) for cell in ours] == [_FIGURE.findall(cell) for cell in theirs]


def test_figures_of_the_first_screens_are_those_of_the_english_page() -> None:
    prose = re.sub(r"\]\([^)]*\)", "]", before(CHINESE, "支持哪些模型"))
    losses = set(re.findall(r"\d\.\d+e-\d+", prose))
    assert losses == set(re.findall(r"\d\.\d+e-\d+", ENGLISH))


def listed(page: str) -> set[str]:
    """Commands in the first column of a table."""
    rows = re.findall(r"^\| (`qplan .*?) \|", page, re.MULTILINE)
    return {found for row in rows for found in re.findall(r"`(qplan [^`]+)`", row)}


def test_every_command_is_listed() -> None:
    assert listed(CHINESE) == listed(ENGLISH)
    assert len(listed(CHINESE)) >= 14


def test_links_of_the_chinese_page_lead_somewhere() -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)", CHINESE)
    assert len(links) > 10
    assert [link for link in links if not (ROOT / link).exists()] == []
