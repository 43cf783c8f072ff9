"""Reads tables of the documentation: which keys it says an object has, which options a command."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"

_CELL = re.compile(r"(?<!\\)\|")


def sections(path: Path) -> dict[str, str]:
    """Text under every heading, by the heading without backticks; up to the next of any level."""
    found: dict[str, str] = {}
    heading = ""
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            heading = line.lstrip("# ").replace("`", "").strip()
            assert heading not in found, f"{path.name} has two headings {heading!r}"
            found[heading] = ""
        elif heading:
            found[heading] += line + "\n"
    return found


def rows(text: str) -> Iterator[list[str]]:
    """Cells of the lines of all tables in a text, headings and rules left out."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    for index, line in enumerate(lines):
        follows = lines[index + 1] if index + 1 < len(lines) else ""
        if set(line) <= set("|-: ") or (follows and set(follows) <= set("|-: ")):
            continue
        yield [cell.strip() for cell in _CELL.split(line)[1:-1]]


def keys(path: Path, heading: str) -> dict[str, str]:
    """Type by key, from the first two columns of the tables under a heading; several keys may share a line."""
    found: dict[str, str] = {}
    for cells in rows(sections(path)[heading]):
        for key in re.findall(r"`([^`]+)`", cells[0]):
            found[key] = cells[1]
    return found


def paths(value: object, known: Mapping[str, str], prefix: str = "") -> set[str]:
    """The keys of a JSON value as the documentation writes them: ``points[].bpw``; a map's keys are its data."""
    if isinstance(value, Mapping):
        found: set[str] = set()
        for name, item in value.items():
            path = f"{prefix}{name}"
            found.add(path)
            if not known.get(path, "").startswith("map"):
                found |= paths(item, known, f"{path}.")
        return found
    if isinstance(value, list):
        inside = prefix.removesuffix(".") + "[]."
        return {path for item in value for path in paths(item, known, inside)}
    return set()


def absent(value: object, prefix: str = "") -> set[str]:
    """Beginnings of keys that a value cannot have: inside its empty lists, maps and nulls."""
    if value is None:
        return {f"{prefix}."}
    if isinstance(value, Mapping):
        if not value:
            return {f"{prefix}."}
        dot = f"{prefix}." if prefix else ""
        return {path for name, item in value.items() for path in absent(item, f"{dot}{name}")}
    if isinstance(value, list):
        if not value:
            return {f"{prefix}[]"}
        # one object with the key is enough
        return set.intersection(*(absent(item, f"{prefix}[]") for item in value))
    return set()


def assert_documented(value: object, known: Mapping[str, str]) -> None:
    """Hold a value's keys to the documentation, in both directions."""
    found = paths(value, known)
    assert found <= set(known), f"not documented: {sorted(found - set(known))}"
    gone = {key for key in set(known) - found if not key.startswith(tuple(absent(value)))}
    assert not gone, f"documented, but not written: {sorted(gone)}"
