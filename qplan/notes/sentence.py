"""Writes a note's sentence: fills the places of a template with values, joins lists and maps as a language does.

Numbers and texts take Python's format specifications. For lists and maps a place says, in any order:

- ``and``: the last of a list is joined by "and";
- ``apart``: items that contain commas are separated by more than a comma;
- ``more {others}``: how many more are not named; nothing is added for 0;
- for maps, the specification of their numbers: ``.2f`` writes ``name: 0.85``, ``(d)`` writes ``name (12)``; all but
  those in parentheses are separated as with ``apart``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from string import Formatter
from typing import Any

MISSING = "\N{EN DASH}"
"""Stands for a number that is not finite."""


@dataclass(frozen=True)
class Grammar:
    """How a language joins what is in a list."""

    comma: str
    apart: str
    both: str
    """Template for the last two of a list: ``first`` and ``last``."""
    more: str
    """Template for ``names`` and the ``count`` of those that are not named."""
    nothing: str
    """What stands for an empty list."""
    pair: str
    """Template for ``name`` and ``value``."""
    aside: str
    """Template for ``name`` and ``value`` in parentheses."""


ENGLISH = Grammar(
    comma=", ",
    apart="; ",
    both="{first} and {last}",
    more="{names} and {count} more",
    nothing="none",
    pair="{name}: {value}",
    aside="{name} ({value})",
)


class _Writer(Formatter):
    def __init__(self, grammar: Grammar) -> None:
        self.grammar = grammar

    def format_field(self, value: Any, format_spec: str) -> str:  # noqa: ANN401 - as the base class has it
        if value is None:
            return MISSING
        if not isinstance(value, tuple | Mapping):
            return format(value, format_spec)
        joint, others, number = _read(format_spec)
        if isinstance(value, Mapping):
            pattern = self.grammar.aside if number.startswith("(") else self.grammar.pair
            joint = "" if number.startswith("(") else "apart"
            shown = [
                pattern.format(name=name, value=self.format_field(item, number.strip("()")))
                for name, item in value.items()
            ]
        else:
            shown = [str(item) for item in value]
        joined = self._joined(shown, joint)
        return self.grammar.more.format(names=joined, count=others) if others else joined

    def _joined(self, shown: Sequence[str], joint: str) -> str:
        grammar = self.grammar
        if not shown:
            return grammar.nothing
        if joint == "and" and len(shown) > 1:
            return grammar.both.format(first=grammar.comma.join(shown[:-1]), last=shown[-1])
        return (grammar.apart if joint == "apart" else grammar.comma).join(shown)


def _read(specification: str) -> tuple[str, int, str]:
    """How a list is joined, how many more there are, how numbers are written."""
    joint, others, number = "", 0, ""
    words = iter(specification.split())
    for word in words:
        if word in ("and", "apart"):
            joint = word
        elif word == "more":
            others = int(next(words))
        else:
            number = word
    return joint, others, number


def write(template: str, values: Mapping[str, object], grammar: Grammar) -> str:
    """Fill a sentence's places."""
    return _Writer(grammar).vformat(template, (), values)


def places(template: str) -> set[str]:
    """The fields that a sentence shows, including those inside specifications."""
    found: set[str] = set()
    for _, name, specification, _ in Formatter().parse(template):
        if name is not None:
            found |= {name, *places(specification or "")}
    return found
