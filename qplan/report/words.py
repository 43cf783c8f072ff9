"""Languages of the report: a catalog from English messages, which are the keys, to other languages.

Messages of the report's own code and templates are looked up by `Words.__call__`: a missing one is a mistake and
raises. What artifacts hold are codes: `Words.note` writes their sentences, `Words.status` says how a solver ended.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cache
from importlib.resources import files
from typing import TypeVar

from qplan.notes import Note
from qplan.notes.sentence import ENGLISH as ENGLISH_GRAMMAR
from qplan.notes.sentence import Grammar
from qplan.report.notation import TIMES

Text = TypeVar("Text", bound=str)
"""A message, or one that is markup."""

_QUOTIENT = re.compile(rf"(\d){TIMES}(?= \(|$)")
"""A quotient, with or without its interval behind."""

_BETWEEN_CHINESE = re.compile(r"(?<=[\u3001-\u9fff\uff01-\uff5e]) (?=[\u3001-\u9fff\uff01-\uff5e])")
"""A space that a place needs beside Latin letters, and that what fills it does not have."""


class Language(StrEnum):
    """Languages that reports are written in."""

    en = "en"
    zh = "zh"

    @property
    def tag(self) -> str:
        """Language tag for the page's ``lang`` attribute."""
        return {"en": "en", "zh": "zh-CN"}[self.value]


@dataclass(frozen=True)
class Words:
    """The report's words in one language."""

    language: Language
    messages: Mapping[str, str]
    """Translation by English message; empty for English."""
    notes: Mapping[str, str] = field(default_factory=dict)
    """Sentence by code; empty for English, whose sentences stand in `qplan.notes.catalog`."""
    statuses: Mapping[str, str] = field(default_factory=dict)
    """Name by a solver's status; empty for English, which uses the status itself."""
    grammar: Grammar = ENGLISH_GRAMMAR

    def __call__(self, message: str, /, **values: object) -> str:
        """A message with its ``{places}`` filled; a quotient stands as a sentence of the language has it.

        Raises:
            KeyError: the catalog lacks the message.
        """
        return self.filled(self.pattern(message), values)

    def filled(self, pattern: Text, values: Mapping[str, object]) -> Text:
        """A pattern with its places filled; of markup, markup."""
        if self.language is not Language.zh:
            return type(pattern)(pattern.format(**values))
        said = {
            name: type(value)(_QUOTIENT.sub(r"\1 倍", value)) if isinstance(value, str) else value
            for name, value in values.items()
        }
        return type(pattern)(_BETWEEN_CHINESE.sub("", pattern.format(**said)))

    def pattern(self, message: str) -> str:
        """A message with its ``{places}`` left open, to be filled later.

        Raises:
            KeyError: the catalog lacks the message.
        """
        return message if self.language is Language.en else self.messages[message]

    @property
    def space(self) -> str:
        """Space between sentences; none in Chinese, whose full stops include it."""
        return "" if self.language is Language.zh else " "

    def join(self, *sentences: str) -> str:
        """Sentences as a paragraph."""
        return self.space.join(sentence for sentence in sentences if sentence)

    def note(self, note: Note) -> str:
        """The sentence of a note; a note that is text stays as it is, see `Note.is_text`."""
        if self.language is Language.en or note.is_text:
            return str(note)
        return note.told(self.notes[note.code], self.grammar)

    def status(self, status: str) -> str:
        """Name of a solver's status."""
        return self.statuses.get(status, status)


ENGLISH = Words(Language.en, {})


@cache
def words_of(language: Language) -> Words:
    """The words of a language."""
    if language is Language.en:
        return ENGLISH
    catalog = json.loads(files("qplan.report").joinpath(f"locales/{language}.json").read_text(encoding="utf-8"))
    notes, statuses, grammar = catalog["notes"], catalog["statuses"], Grammar(**catalog["grammar"])
    return Words(language, catalog["messages"], notes, statuses, grammar)
