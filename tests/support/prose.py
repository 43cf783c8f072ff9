"""Finds English where there should be none."""

from __future__ import annotations

import re
from html.parser import HTMLParser

# three words in a row that are no names: English has leaked
SENTENCE = re.compile(r"\b[A-Za-z][a-z]+(?:[ ,]+(?:[a-z]{2,}|a)){2,}")


class Prose(HTMLParser):
    """What people read: text and labels, but no code, names or numbers."""

    SKIPPED = ("script", "style", "pre", "samp", "code")

    def __init__(self) -> None:
        super().__init__()
        self.skipping = 0
        self.texts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.skipping += tag in self.SKIPPED
        self.texts += [value or "" for name, value in attrs if name in ("aria-label", "title", "alt")]

    def handle_endtag(self, tag: str) -> None:
        self.skipping -= tag in self.SKIPPED

    def handle_data(self, data: str) -> None:
        if not self.skipping:
            self.texts.append(data)


def english_sentences(page: str) -> list[str]:
    """Lines of a page's prose that hold three English words in a row."""
    prose = Prose()
    prose.feed(page)
    lines = (line.strip() for text in prose.texts for line in text.splitlines())
    return [line for line in lines if SENTENCE.search(line)]
