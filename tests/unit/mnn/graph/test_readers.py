"""Readers of MNN's own files: whatever bytes they get, they end with a value or an InputError."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qplan.errors import InputError
from qplan.mnn.graph.binary import parse_binary_graph
from qplan.mnn.graph.flatbuffer import Table
from qplan.mnn.preflight.tokenizer_file import TokenizerFile, parse_tokenizer


@given(st.binary(max_size=200))
def test_random_bytes_are_refused(data: bytes) -> None:
    for parse in (parse_binary_graph, parse_tokenizer):
        with pytest.raises(InputError):
            parse(data)


def test_a_table_by_hand() -> None:
    # root offset, vtable (size 8, object 12, fields at 4 and 8), table: vtable distance, an int, an offset to a string
    data = struct.pack("<IHHHHiiI", 12, 8, 12, 4, 8, 8, -7, 4) + struct.pack("<I", 3) + b"abc\0"
    table = Table.root(data)
    assert (table.int32(0), table.string(1), table.int32(2, 5), table.has(2)) == (-7, "abc", 5, False)
    assert (table.string(9), table.length(1), list(table.tables(9)), table.int64s(9)) == ("", 3, [], ())
    with pytest.raises(InputError, match="truncated or damaged"):
        Table.root(data[:-6]).string(1)
    with pytest.raises(InputError, match="truncated or damaged"):
        Table.root(b"")


def bpe(tokens: list[tuple[bytes, int]], added: int) -> bytes:
    body = b"\x00\x00\x00" + struct.pack("<I", len(tokens)) + b"\x00\x00" + struct.pack("<I", 1)
    body += b"".join(struct.pack("<H", len(text)) + text + struct.pack("<I", index) for text, index in tokens)
    body += struct.pack("<III", 0, 1, 0) + b"\x00"
    return body + struct.pack("<II", 1, added) + b"\x01\x00\x00" + struct.pack("<H", 1) + b"x"


def test_tokenizers_of_both_kinds() -> None:
    header = b"430 4\n1 2 1\n9 7 8 6\n"
    whole = header + bpe([(b"a", 0), (b"bc", 1)], 9)
    assert parse_tokenizer(whole) == TokenizerFile(9, (9,), (7, 8), (6,))
    assert parse_tokenizer(header + bpe([(b"a", 0)] * 13 + [(b"b", 12)], 9)).largest_id == 12
    for cut in range(len(header), len(whole)):
        with pytest.raises(InputError):
            parse_tokenizer(whole[:cut])
    assert parse_tokenizer(b"430 3\n0 1 0\n2\n3 0\na\nb\nc\n") == TokenizerFile(2, (), (2,), ())
    for wrong, words in (
        (b"430 3\n0 1 0\n2\n3 0\na\nb", "after 2 of 3"),
        (b"431 3\n0 0 0\n\n0\n", "expected '430"),
        (b"430 3\n0 9 0\n2\n3 0\n", "are truncated"),
        (b"430 x\n0 9 0\n2\n3 0\n", "not numbers"),
        (header + bpe([(b"a", 0), (b"bc", 2)], 9), "2 tokens have ids up to 2: the engine writes beyond its list of 2"),
        (header + b"\x63", "normalizer is of unknown kind"),
        (header + b"\x04\xff\xff\xff\xff", "sequence of"),
    ):
        with pytest.raises(InputError, match=words):
            parse_tokenizer(wrong)
