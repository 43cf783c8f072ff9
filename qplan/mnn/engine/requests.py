"""Requests to the engine, checked before it sees them: it crashes on some, and answers others with garbage."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qplan.errors import InputError

TokenIds = Sequence[int] | NDArray[np.integer[Any]]
"""Tokens of one sequence."""

_MOST_WRITTEN = 10**15
"""Largest length that a message repeats."""

_SHOWN = 80
"""Characters of a value in a message."""

MOST_TEXT_BYTES = 1 << 20
"""Longest text."""


def checked_tokens(token_ids: object, vocabulary: int, context: int | None, more: int = 0) -> list[int]:
    """Token ids as Python integers.

    Args:
        token_ids: what was asked for.
        vocabulary: number of tokens that the model has.
        context: longest sequence; None if unknown.
        more: tokens that will follow them.

    Raises:
        InputError: no tokens, too many, not whole numbers, or outside of the vocabulary.
    """
    if isinstance(token_ids, (str, bytes)) or not isinstance(token_ids, (Sequence, np.ndarray)):
        msg = f"token ids are a {type(token_ids).__name__}, expected a list of whole numbers"
        raise InputError(msg)
    count = _count(token_ids)
    if count == 0:
        msg = "no tokens: the engine crashes on an empty sequence"
        raise InputError(msg)
    if context is not None and count + more > context:
        then = f" and {more:,} to come" if 0 < more < _MOST_WRITTEN else " and far more to come" if more else ""
        msg = f"{count:,} tokens{then} exceed the context of {context:,}; use fewer"
        raise InputError(msg)
    ids = token_ids.tolist() if isinstance(token_ids, np.ndarray) else list(islice(token_ids, count + 1))
    if len(ids) != count:
        found = "more" if len(ids) > count else f"{len(ids):,}"
        msg = f"token ids say that they are {count:,}, and are {found}; give a plain list"
        raise InputError(msg)
    for place, token in enumerate(ids):
        if isinstance(token, bool) or not isinstance(token, (int, np.integer)):
            msg = f"token {place} is {shown(token)}, expected a whole number from 0 to {vocabulary - 1}"
            raise InputError(msg)
        if not 0 <= token < vocabulary:
            msg = f"token {place} is {shown(int(token))}, outside of the vocabulary of {vocabulary}; use its tokenizer"
            raise InputError(msg)
    return [int(token) for token in ids]


def checked_positions(wanted: object, tokens: int, vocabulary: int) -> list[tuple[int, int]]:
    """Positions of a sequence, each with a token that may follow.

    Args:
        wanted: what was asked for.
        tokens: length of the sequence.
        vocabulary: number of tokens that the model has.

    Raises:
        InputError: none, not pairs of whole numbers, a position outside of the sequence, a token of the vocabulary.
    """
    pairs = [tuple(pair) for pair in wanted] if isinstance(wanted, Sequence) and not isinstance(wanted, str) else []
    if not pairs or any(len(pair) != 2 for pair in pairs):
        msg = f"wanted {shown(wanted)}: expected a list of pairs of a position and a token"
        raise InputError(msg)
    found = []
    for position, token in pairs:
        if checked_count("position", position, least=0) >= tokens:
            msg = f"position {shown(position)}: outside of the sequence of {tokens:,} tokens, which begins at 0"
            raise InputError(msg)
        found.append((int(position), checked_tokens([token], vocabulary, None)[0]))
    return found


def checked_count(name: str, value: object, least: int = 1) -> int:
    """A whole number that is not too small.

    Raises:
        InputError: not a whole number, or below ``least``.
    """
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or int(value) < least:
        msg = f"{name} {shown(value)}: must be a whole number from {least}"
        raise InputError(msg)
    return int(value)


def shown(value: object) -> str:
    """A value for a message, cut to a readable length; Python itself refuses to write very long numbers."""
    try:
        text = repr(value)
    except ValueError:
        return "a number of thousands of digits"
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def checked_text(text: object) -> str:
    """A text that a tokenizer can take.

    Raises:
        InputError: not a text, empty, too long, or with characters that the engine cannot read.
    """
    if not isinstance(text, str) or not text:
        msg = f"{text!r:.80} is no text; give at least one character"
        raise InputError(msg)
    if "\0" in text:
        msg = f"character {text.index(chr(0))} of the text is a NUL, which the engine takes for its end; remove it"
        raise InputError(msg)
    try:
        size = len(str.encode(text))
    except UnicodeEncodeError as error:
        msg = f"character {error.start} of the text is half of a surrogate pair; give valid Unicode"
        raise InputError(msg) from None
    if size > MOST_TEXT_BYTES:
        msg = f"a text of {size:,} bytes, limit {MOST_TEXT_BYTES:,}; use shorter pieces"
        raise InputError(msg)
    return text


def _count(token_ids: Sequence[Any] | NDArray[Any]) -> int:
    if isinstance(token_ids, np.ndarray) and token_ids.ndim != 1:
        msg = f"token ids are an array of shape {token_ids.shape}, expected one dimension"
        raise InputError(msg)
    try:
        return len(token_ids)
    except OverflowError:
        msg = "there are more tokens than any context holds"
        raise InputError(msg) from None
