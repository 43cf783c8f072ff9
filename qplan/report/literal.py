"""Text from outside as data: what a terminal, Markdown or a figure would obey in a name is shown instead.

HTML is escaped by its templates.
"""

from __future__ import annotations

import re

_CONTROLS = (*(code for code in range(0x20) if chr(code) not in "\t\n"), *range(0x7F, 0xA0))
_DIRECTIONS = (*range(0x202A, 0x202F), *range(0x2066, 0x206A))
"""Marks that change the order in which what follows is shown."""
_VISIBLE = {code: f"\\x{code:02x}" for code in _CONTROLS} | {code: f"\\u{code:04x}" for code in _DIRECTIONS}
_MARKDOWN_MARKS = re.compile(r"([\\`*\[\]<>|~#&$])|(?<![A-Za-z0-9])(_)|(_)(?![A-Za-z0-9])")


def visible(text: str) -> str:
    r"""A text for a terminal: what it would obey and not show is written out, as ``\x1b``."""
    return text.translate(_VISIBLE)


def markdown(text: object) -> str:
    """Escape a text so that Markdown shows it as it is, even in a table's cell."""
    return _MARKDOWN_MARKS.sub(r"\\\g<0>", " ".join(str(text).split()))


def markdown_code(text: object, *, in_table: bool = False) -> str:
    """A code span; the text may hold backticks, and bars, which only tables read."""
    flat = " ".join(str(text).split())
    flat = flat.replace("|", r"\|") if in_table else flat
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", flat)), default=0))
    pad = " " if flat.startswith("`") or flat.endswith("`") else ""
    return f"{fence}{pad}{flat}{pad}{fence}"


def figure_text(text: str) -> str:
    """A text for matplotlib: dollars begin no formula."""
    return visible(text).replace("$", r"\$")
