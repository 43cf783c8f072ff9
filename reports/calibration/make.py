"""Makes ``calib/mixture``: prose, code, documentation and Chinese, a quarter of the characters or so each.

Run from the repository's root, with the package of the Debian Administrator's Handbook as ``apt-get download`` and
``dpkg -x`` leave it:

    python -m reports.calibration.make FOLDER/usr/share/doc/debian-handbook/html

English and Chinese prose are of different chapters, so that no text is there twice. Code is a part of
``calib/python-stdlib``, documentation is what Python's ``help`` says of the language.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import unicodedata
from html.parser import HTMLParser
from pathlib import Path
from pydoc_data.topics import topics

ROOT = Path(__file__).parents[2]
OUT = ROOT / "calib" / "mixture"
BYTES = {"prose.txt": 70_000, "code.txt": 70_000, "documentation.txt": 60_000, "chinese.txt": 70_000}
"""Most bytes of each file."""

_LEAST_CHARACTERS = {"en-US": 200, "zh-CN": 60}
"""Of a paragraph: shorter ones are captions and steps."""

_LEAST_CHINESE = 0.6
"""Share of a Chinese paragraph's characters: paragraphs that are not translated yet are in English."""


class _Paragraphs(HTMLParser):
    """The text of a page's paragraphs."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self._parts: list[str] = []
        self._open = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Begin a paragraph."""
        if tag in {"p", "div"}:
            self._end()
            self._open = ("class", "para") in attrs

    def handle_endtag(self, tag: str) -> None:
        """End a paragraph."""
        if tag in {"p", "div"}:
            self._end()

    def handle_data(self, data: str) -> None:
        """Take its text."""
        if self._open:
            self._parts.append(data)

    def _end(self) -> None:
        if text := " ".join("".join(self._parts).split()):
            self.found.append(text)
        self._parts, self._open = [], False


def paragraphs(handbook: Path, language: str, which: int) -> list[str]:
    """Long paragraphs of every second page of the handbook, the even or the odd ones."""
    found = []
    for path in sorted((handbook / language).glob("*.html"))[which::2]:
        page = _Paragraphs()
        page.feed(path.read_text(encoding="utf-8"))
        found += [text for text in page.found if len(text) >= _LEAST_CHARACTERS[language]]
    return [text for text in dict.fromkeys(found) if language != "zh-CN" or _chinese(text) >= _LEAST_CHINESE]


def _chinese(text: str) -> float:
    return sum(unicodedata.name(character, "").startswith("CJK") for character in text) / len(text)


def within(texts: list[str], most_bytes: int) -> str:
    """As many of the first texts as fit."""
    kept, left = [], most_bytes
    for text in texts:
        left -= len(text.encode()) + 2
        if left < 0:
            break
        kept.append(text)
    return "\n\n".join(kept) + "\n"


def main() -> None:
    """Write the set and its manifest."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("handbook", type=Path)
    handbook = parser.parse_args().handbook
    code = (ROOT / "calib" / "python-stdlib" / "text.txt").read_text(encoding="utf-8")
    texts = {
        "prose.txt": paragraphs(handbook, "en-US", 0),
        "code.txt": code.split("\n\n\n"),
        "documentation.txt": [topics[name].strip() for name in sorted(topics)],
        "chinese.txt": paragraphs(handbook, "zh-CN", 1),
    }
    OUT.mkdir(parents=True, exist_ok=True)
    for name, parts in texts.items():
        (OUT / name).write_text(within(parts, BYTES[name]), encoding="utf-8")
    written = {name: (OUT / name).read_bytes() for name in texts}
    manifest = {
        "name": "mixture",
        "description": "English prose, Python sources, documentation and Chinese prose, a quarter or so each.",
        "source": "prose.txt, chinese.txt: The Debian Administrator's Handbook by Raphaël Hertzog and Roland Mas, and "
        "its Chinese translation (package debian-handbook 11.20220922), paragraphs of it; "
        f"code.txt: calib/python-stdlib; documentation.txt: pydoc_data.topics of Python {sys.version.split()[0]}",
        "licence": "CC-BY-SA-3.0 (prose.txt, chinese.txt), PSF-2.0 (code.txt, documentation.txt)",
        "sha256": {name: hashlib.sha256(data).hexdigest() for name, data in written.items()},
        "bytes": sum(map(len, written.values())),
        "files": list(texts),
        "how_made": "python -m reports.calibration.make",
    }
    text = json.dumps(manifest, indent=2, ensure_ascii=False) + "\n"
    (OUT / "manifest.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
