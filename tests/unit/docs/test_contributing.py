"""CONTRIBUTING.md names rooms, files, functions and tests that are there; the glossary is one."""

from __future__ import annotations

import re
import tomllib

import pytest

from tests.support.documented import DOCS, ROOT, rows, sections

PAGE = ROOT / "CONTRIBUTING.md"
GLOSSARY = DOCS / "reference" / "glossary.md"

_ROOTS = ("qplan", "tests", "docs", "reports", "notebooks", "calib")


def named_paths() -> list[str]:
    """Every path in backticks that is not a pattern: capitals stand for a name of one's own, ``xx`` for a language."""
    text = PAGE.read_text(encoding="utf-8")
    found = re.findall(rf"`((?:{'|'.join(_ROOTS)})/[\w./-]+?)/?`", text)
    return sorted({path for path in found if not re.search(r"NAME|/xx\.", path)})


@pytest.mark.parametrize("path", named_paths())
def test_a_path_that_is_named_is_there(path: str) -> None:
    assert (ROOT / path).exists()


def test_enough_paths_are_named() -> None:
    assert len(named_paths()) > 50


def test_functions_of_the_plan_s_way_are_where_the_page_says() -> None:
    found = re.findall(r"\| \d+ \| `(qplan/[\w/]+\.py)`(?:: `(\w+)`)?", PAGE.read_text(encoding="utf-8"))
    assert len(found) == 12
    for path, function in found:
        assert re.search(rf"^def {function}\(" if function else "", (ROOT / path).read_text(), re.MULTILINE), path


def test_tests_that_are_named_exist() -> None:
    text = PAGE.read_text(encoding="utf-8")
    every = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    for name in re.findall(r"`(test_\w+)`", text):
        assert f"def {name}(" in every


def rooms() -> list[str]:
    """Rooms from the top, as import-linter knows them."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (layers,) = [contract["layers"] for contract in contracts if contract["name"].startswith("Data and imports")]
    return [room.strip().removeprefix("qplan.") for layer in layers for room in re.split(r"[:|]", layer)]


def test_the_map_has_every_room_once_and_no_other() -> None:
    told = [
        name.removesuffix(".py").rstrip("/")
        for cells in rows(sections(PAGE)["The map"])
        for name in re.findall(r"`([\w./]+)`", cells[0])
    ]
    assert sorted(told) == sorted(rooms())
    picture = sections(PAGE)["The map"].split("```")[1]
    for room in rooms():
        assert re.search(rf"\b{room}\b", picture), room


def test_rooms_of_the_linter_are_the_package_s() -> None:
    there = {
        path.stem for path in (ROOT / "qplan").iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()
    }
    assert set(rooms()) == there - {"__init__"}


def test_a_word_of_the_glossary_is_told_once_and_briefly() -> None:
    told = [
        (word, cells[1])
        for text in sections(GLOSSARY).values()
        for cells in rows(text)
        for word in re.findall(r"\*\*(.+?)\*\*", cells[0])
    ]
    words = [word for word, _ in told]
    assert len(words) == len(set(words)) > 60
    wanted = {"goal", "judge", "joint loss", "single loss", "starved", "menu", "skeleton", "rung", "fold", "moments"}
    wanted |= {"run", "budget", "target", "memory low", "dynamic option", "tied", "head", "block", "logits rule"}
    assert wanted | {"knee", "frontier", "repair", "profile", "metric", "gate", "note", "engine"} <= set(words)
    for word, meaning in told:
        assert meaning.endswith((".", ")")), word
        assert meaning.count(". ") <= 3, word


def test_every_test_mark_is_explained() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]
    marks = [mark.split(":")[0] for mark in settings["markers"]]
    (check,) = re.findall(r'-m "(.+)"', (ROOT / "Makefile").read_text())
    assert check == " and ".join(f"not {mark}" for mark in marks)
    assert {cells[0].strip("`") for cells in rows(sections(PAGE)["Set up"])} == set(marks)


def test_the_readme_sends_newcomers_here() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    links = ("](CONTRIBUTING.md)", "](docs/reference/glossary.md)")
    assert all(link in text for link in links)
