"""What ``tokenizer.mtok`` and ``tokenizer.txt`` say about ids: how many there are, which are special, which stop."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from qplan.artifact import read_bounded
from qplan.errors import InputError

MAGIC = 430
_TEXT_TYPES = (0, 1, 2, 3)
_PIPELINE = 4

_MOST_BYTES = 256 << 20
"""Those of the largest vocabularies have some ten million."""

_MOST_TOKENS = 1 << 21
"""Tokens of a vocabulary, and entries of a table: the largest have a quarter of a million."""

_MOST_HEADER_BYTES = 1 << 20
"""Of a line of the header: a few thousand ids at most."""

_DEPTH = 8
"""Deepest nesting of sequences that is read; real tokenizers have one level."""


@dataclass(frozen=True)
class TokenizerFile:
    """The ids of a tokenizer."""

    largest_id: int
    """Largest id of a token that a text can become; -1 if there is none."""
    special: tuple[int, ...]
    stops: tuple[int, ...]
    """Ids that end a generation."""
    prefix: tuple[int, ...]
    """Ids that every text begins with."""


def read_tokenizer(path: Path) -> TokenizerFile:
    """Read an MNN tokenizer file.

    Raises:
        InputError: no such file, or not a whole tokenizer.
    """
    return parse_tokenizer(read_bounded(path, _MOST_BYTES))


def parse_tokenizer(data: bytes) -> TokenizerFile:
    """Read a tokenizer file's bytes.

    Raises:
        InputError: not a whole tokenizer.
    """
    first, counts, listed, rest = _header(data)
    if len(counts) != 3 or min(counts) < 0 or len(listed) < sum(counts):
        msg = f"its lists of special tokens are truncated: {counts} announced, {len(listed)} ids found"
        raise InputError(msg)
    special, stops, prefix = counts
    groups = listed[:special], listed[special : special + stops], listed[special + stops : special + stops + prefix]
    largest = _pipeline_ids(rest) if first[1] == _PIPELINE else _text_ids(rest)
    return TokenizerFile(largest, *(tuple(group) for group in groups))


def _header(data: bytes) -> tuple[list[int], list[int], list[int], bytes]:
    lines = data.split(b"\n", 3)
    if len(lines) < 4:
        msg = "it has no header"
        raise InputError(msg)
    longest = max(len(line) for line in lines[:3])
    if longest > _MOST_HEADER_BYTES:
        msg = f"its header has a line of {longest:,} bytes, limit {_MOST_HEADER_BYTES:,}: another kind of file"
        raise InputError(msg)
    try:
        first, counts, listed = ([int(word) for word in line.split()] for line in lines[:3])
    except ValueError:
        msg = "its header is not numbers"
        raise InputError(msg) from None
    if len(first) != 2 or first[0] != MAGIC or first[1] not in (*_TEXT_TYPES, _PIPELINE):
        msg = f"it begins with {lines[0][:40]!r}, expected '{MAGIC} <type>': another kind of file"
        raise InputError(msg)
    return first, counts, listed, lines[3]


def _text_ids(body: bytes) -> int:
    """Largest id of a text vocabulary: a line with their count, then one token per line."""
    count, _, tokens = body.partition(b"\n")
    try:
        announced = int(count.split()[0])
    except (ValueError, IndexError):
        msg = f"its vocabulary begins with {count[:40]!r}, expected a count"
        raise InputError(msg) from None
    found = tokens.count(b"\n") + (not tokens.endswith(b"\n") and bool(tokens))
    if found < announced:
        msg = f"its vocabulary ends after {found} of {announced} tokens"
        raise InputError(msg)
    return announced - 1


class _Cursor:
    """Walks through the binary part; raises where bytes are missing."""

    def __init__(self, data: bytes) -> None:
        self.data, self.place = data, 0

    def take(self, count: int) -> bytes:
        part = self.data[self.place : self.place + count]
        if len(part) != count:
            msg = f"it ends {count - len(part)} bytes early, at byte {len(self.data)} of its vocabulary"
            raise InputError(msg)
        self.place += count
        return part

    def number(self, code: str) -> int:
        layout = struct.Struct(f"<{code}")
        value: int = layout.unpack(self.take(layout.size))[0]
        return value

    def text(self) -> None:
        self.take(self.number("H"))


def _pipeline_ids(body: bytes) -> int:
    """Walk over normalizer and pre-tokenizer to the vocabulary, and through it."""
    cursor = _Cursor(body)
    _skip_normalizer(cursor, 0)
    _skip_pre_tokenizer(cursor, 0)
    kind = cursor.number("B")
    count, extra = cursor.number("I"), 0
    if kind == 0:  # BPE
        cursor.take(2)
        merges = cursor.number("I")
    elif kind == 1:  # WordPiece
        merges = 0
        cursor.text()
        cursor.text()
        cursor.take(4)
    elif kind == 2:  # Unigram
        merges, extra = 0, 8
        cursor.take(5)
    else:
        msg = f"its model is of unknown kind {kind}: a damaged file"
        raise InputError(msg)
    largest = _vocabulary_ids(cursor, count, extra)
    if kind == 0 and largest >= count:
        msg = f"its {count} tokens have ids up to {largest}: the engine writes beyond its list of {count}, and crashes"
        raise InputError(msg)
    cursor.take(12 * merges)
    return max(largest, _added_ids(cursor))


def _vocabulary_ids(cursor: _Cursor, count: int, extra: int) -> int:
    """Largest id of ``count`` tokens; a plain loop, since there may be a quarter of a million."""
    _check_count("tokens", count)
    data, place, largest = cursor.data, cursor.place, -1
    length_of, id_of = struct.Struct("<H").unpack_from, struct.Struct("<I").unpack_from
    try:
        for _ in range(count):
            place += 2 + length_of(data, place)[0]
            largest = max(largest, id_of(data, place)[0])
            place += 4 + extra
    except struct.error:
        msg = f"its vocabulary of {count} tokens is truncated"
        raise InputError(msg) from None
    cursor.place = place
    return largest


def _check_count(what: str, count: int) -> None:
    """Refuse a count that would take minutes to walk through.

    Raises:
        InputError: more than any tokenizer has.
    """
    if count > _MOST_TOKENS:
        msg = f"it announces {count:,} {what}, limit {_MOST_TOKENS:,}: a damaged file"
        raise InputError(msg)


def _skip_normalizer(cursor: _Cursor, depth: int) -> None:
    kind = cursor.number("B")
    if kind == 2:
        cursor.text()
    elif kind == 3:
        cursor.text()
        cursor.text()
    elif kind == 4:
        _each(cursor, depth, _skip_normalizer)
    elif kind in (5, 7):
        strips = cursor.take(4)[2]
        if kind == 7 and strips:
            _skip_table(cursor)
    elif kind == 6:
        _skip_table(cursor)
    elif kind == 8:
        cursor.take(2)
    elif kind not in (0, 1):
        msg = f"its normalizer is of unknown kind {kind}: a damaged file"
        raise InputError(msg)


def _skip_pre_tokenizer(cursor: _Cursor, depth: int) -> None:
    kind = cursor.number("B")
    if kind in (1, 2):
        cursor.take(1)
    elif kind == 3:
        cursor.text()
        cursor.take(1)
    elif kind == 4:
        cursor.text()
        cursor.take(2)
    elif kind == 6:
        _each(cursor, depth, _skip_pre_tokenizer)
    elif kind not in (0, 5):
        msg = f"its pre-tokenizer is of unknown kind {kind}: a damaged file"
        raise InputError(msg)


def _skip_decoder(cursor: _Cursor, depth: int) -> None:
    kind = cursor.number("B")
    if kind in (2, 3):
        cursor.text()
        cursor.take(1)
    elif kind == 5:
        cursor.text()
        cursor.text()
    elif kind == 6:
        cursor.text()
        cursor.take(8)
    elif kind == 7:
        _each(cursor, depth, _skip_decoder)
    elif kind not in (0, 1, 4):
        msg = f"its decoder is of unknown kind {kind}: a damaged file"
        raise InputError(msg)


def _each(cursor: _Cursor, depth: int, skip: Callable[[_Cursor, int], None]) -> None:
    count = cursor.number("I")
    if depth >= _DEPTH or count > 1024:
        msg = f"a sequence of {count} parts, {depth} deep: a damaged file"
        raise InputError(msg)
    for _ in range(count):
        skip(cursor, depth + 1)


def _skip_table(cursor: _Cursor) -> None:
    count = cursor.number("I")
    _check_count("entries of a table", count)
    for _ in range(count):
        cursor.take(4)
        cursor.text()


def _added_ids(cursor: _Cursor) -> int:
    """Largest id of the added tokens, which follow the decoder."""
    _skip_decoder(cursor, 0)
    largest = -1
    count = cursor.number("I")
    _check_count("added tokens", count)
    for _ in range(count):
        largest = max(largest, cursor.number("I"))
        cursor.take(3)
        cursor.text()
    return largest
