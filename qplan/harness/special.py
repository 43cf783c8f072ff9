"""The tokens that stand before and after texts, as a folder's files name them."""

from __future__ import annotations

from dataclasses import dataclass

from qplan.errors import InputError
from qplan.mnn.engine.engine import Engine


@dataclass(frozen=True)
class SpecialTokens:
    """Tokens of a folder that are not of a text."""

    start: tuple[int, ...]
    """Those that the engine's tokenizer puts before every text."""
    first: int
    """The one that a text begins with where something must stand before it: that of texts, or else the end's."""
    end: int


def special_tokens(engine: Engine) -> SpecialTokens:
    """Read a folder's special tokens: those of its chat template, or else of its tokenizer's file.

    Raises:
        InputError: the folder names no token that ends a text.
        ToolError: the engine failed.
    """
    start = engine.preflight.starts
    named = engine.preflight.settings.get("jinja")
    words = named if isinstance(named, dict) else {}
    first, end = (_token(engine, words.get(name), start) for name in ("bos", "eos"))
    stops = engine.preflight.stops
    if end is None and not stops:
        msg = f"{engine.folder} names no token that ends a text; export the model again, or pass tokenizer=MODEL"
        raise InputError(msg)
    end = stops[0] if end is None else end
    return SpecialTokens(start, start[0] if start else end if first is None else first, end)


def _token(engine: Engine, word: object, start: tuple[int, ...]) -> int | None:
    if not isinstance(word, str) or not word:
        return None
    ids = engine.encode(word)[len(start) :]
    return ids[0] if len(ids) == 1 else None
