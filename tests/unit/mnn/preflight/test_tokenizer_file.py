"""Tokenizer files with counts and lines far longer than any tokenizer's: refused before they are walked through."""

from __future__ import annotations

import struct

import pytest

from qplan.errors import InputError
from qplan.mnn.preflight.tokenizer_file import parse_tokenizer

HEADER = b"430 4\n0 0 0\n\n"
MANY = struct.pack("<I", 0xFFFF_FFFF)
BPE_WITHOUT_TOKENS = b"\0\0\0" + struct.pack("<I", 0) + b"\0\0" + struct.pack("<I", 0) + b"\0"


@pytest.mark.parametrize(
    ("body", "what"),
    [
        (b"\0\0\2" + MANY + b"\0" * 5, "tokens"),
        (b"\6" + MANY, "entries of a table"),
        (BPE_WITHOUT_TOKENS + MANY, "added tokens"),
    ],
)
def test_counts_that_no_tokenizer_has(body: bytes, what: str) -> None:
    with pytest.raises(InputError, match=f"4,294,967,295 {what}, limit 2,097,152"):
        parse_tokenizer(HEADER + body)


def test_a_header_of_megabytes() -> None:
    with pytest.raises(InputError, match="2,000,006 bytes, limit 1,048,576"):
        parse_tokenizer(b"430 4 " + b"1 " * 1_000_000 + b"\n0 0 0\n\n\0")


@pytest.mark.parametrize(
    ("tokens", "end"), [(b"YQ==\nYg==", True), (b"YQ==\nYg==\n", True), (b"YQ==\n", False), (b"", False)]
)
def test_lines_of_a_text_vocabulary_are_counted(tokens: bytes, end: bool) -> None:  # noqa: FBT001
    data = b"430 0\n0 0 0\n\n2\n" + tokens
    if end:
        assert parse_tokenizer(data).largest_id == 1
    else:
        with pytest.raises(InputError, match="of 2 tokens"):
            parse_tokenizer(data)
