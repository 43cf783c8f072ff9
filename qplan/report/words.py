"""Languages of the report: a catalog from English messages, which are the keys, to other languages.

Messages of the report's own code and templates are looked up by `Words.__call__`: a missing one is a mistake and
raises. Sentences that artifacts hold (notes, names and details of checks) were written in English by whoever made them;
`Words.stored` finds them by their wording and translates what it knows.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from importlib.resources import files


class Language(StrEnum):
    """Languages that reports are written in."""

    en = "en"
    zh = "zh"

    @property
    def tag(self) -> str:
        """For the ``lang`` attribute of the page."""
        return {"en": "en", "zh": "zh-CN"}[self.value]


@dataclass(frozen=True)
class _StoredSentence:
    """A sentence of an artifact with places for what varies."""

    pattern: re.Pattern[str]
    """Of the English sentence; one group per place."""
    translation: str


@dataclass(frozen=True)
class Words:
    """The report's words in one language."""

    language: Language
    messages: Mapping[str, str]
    """Translation by English message; empty for English."""
    sentences: tuple[_StoredSentence, ...] = ()
    """Of artifacts, in the order in which they are tried."""
    parts: tuple[_StoredSentence, ...] = ()
    """What may stand in their places."""

    def __call__(self, message: str, /, **values: object) -> str:
        """A message with its ``{places}`` filled.

        Raises:
            KeyError: the catalog lacks the message.
        """
        return self.pattern(message).format(**values)

    def pattern(self, message: str) -> str:
        """A message with its places open, for those who fill them later.

        Raises:
            KeyError: the catalog lacks the message.
        """
        return message if self.language is Language.en else self.messages[message]

    @property
    def space(self) -> str:
        """What stands between sentences: Chinese full stops bring their own space."""
        return "" if self.language is Language.zh else " "

    def join(self, *sentences: str) -> str:
        """Sentences as a paragraph."""
        return self.space.join(sentence for sentence in sentences if sentence)

    def stored(self, text: str) -> str:
        """A sentence that an artifact holds, in this language; as it is where the catalog does not know it."""
        return self._found(text, self.sentences)

    def _found(self, text: str, known: tuple[_StoredSentence, ...]) -> str:
        for sentence in known:
            match = sentence.pattern.fullmatch(text)
            if match is not None:
                places = {name: self._found(part, self.parts) for name, part in match.groupdict().items()}
                return sentence.translation.format(**places)
        return text


ENGLISH = Words(Language.en, {})


@cache
def words_of(language: Language) -> Words:
    """The words of a language."""
    if language is Language.en:
        return ENGLISH
    catalog = json.loads(files("qplan.report").joinpath(f"locales/{language}.json").read_text(encoding="utf-8"))
    return Words(language, catalog["messages"], _sentences(catalog["stored"]), _sentences(catalog["parts"]))


def _sentences(catalog: Mapping[str, str]) -> tuple[_StoredSentence, ...]:
    return tuple(_StoredSentence(_matcher(english), other) for english, other in catalog.items())


def _matcher(sentence: str) -> re.Pattern[str]:
    """``{name}`` matches anything but nothing, as little of it as the rest of the sentence allows."""
    parts = re.split(r"\{(\w+)\}", sentence)
    return re.compile(
        "".join(re.escape(part) if i % 2 == 0 else f"(?P<{part}>.+?)" for i, part in enumerate(parts)), re.DOTALL
    )
