"""Reads the records of a text, JSON-lines or Parquet file, one by one."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from qplan.calibration.record import Record
from qplan.errors import InputError

MAX_CHARACTERS = 20_000_000
"""More text than this is left unread: some five million tokens, far more than a calibration takes."""

_NO_TEXT, _FEW_CONTROLS = bytes(code for code in range(32) if code not in b"\t\n\r\f\x1b"), 50
"""Control characters that no text has, in any encoding; a binary file has at least one byte in so many of them."""

_MOST_LINE_BYTES = 256 << 20
"""Of a JSON-lines file: every line is held in memory."""


def records_of(path: Path) -> Iterator[Record]:
    """The records of a file, read as they are asked for.

    Raises:
        InputError: what cannot be read; names the file and the line.
    """
    try:
        for place, record in READERS[path.suffix.lower()](path):
            yield Record(place, record)
    except OSError as error:
        msg = f"{path} cannot be read: {error.strerror or error}"
        raise InputError(msg) from None


def _read_txt(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    most = 4 * MAX_CHARACTERS  # bytes of the longest characters
    with path.open("rb") as stream:
        content = stream.read(most)
    try:
        # the last character may be cut, but at the end of the file
        text = codecs.getincrementaldecoder("utf-8-sig")().decode(content, final=len(content) < most)
    except UnicodeDecodeError as error:
        raise _no_utf8(str(path), content, error) from None
    if _is_utf16(content[: 1 << 16]):
        raise _no_utf8(str(path), content)
    yield str(path), {"text": text[:MAX_CHARACTERS]}


def _is_utf16(content: bytes) -> bool:
    """Whether every other byte is mostly zero, and those between are not: Western text in UTF-16 without a mark."""
    few, many = sorted(content[first::2].count(0) for first in (0, 1))
    return 4 * many > len(content) and 20 * few < many


def _no_utf8(place: str, content: bytes, error: UnicodeDecodeError | None = None) -> InputError:
    """What to say about text in another encoding.

    Args:
        place: file, or file and line.
        content: as it was read.
        error: where it is no UTF-8; None where zero bytes tell that it is UTF-16.
    """
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        found, encoding = "it begins like UTF-16", "UTF-16"
    elif error is None:
        found, encoding = "it is full of zero bytes, as UTF-16 is", "UTF-16LE"
    elif len(content.translate(None, _NO_TEXT)) * _FEW_CONTROLS < len(content) * (_FEW_CONTROLS - 1):
        return InputError(f"{place} is not text but a binary file, such as an archive; unpack it, or give its text")
    else:
        found, encoding = f"{error.reason} at byte {error.start:,}", "GB18030"
    return InputError(f"{place} is not UTF-8 text: {found}; convert it, e.g. with iconv -f {encoding} -t UTF-8")


def _read_jsonl(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    with path.open("rb") as stream:
        for number, line in enumerate(iter(lambda: stream.readline(_MOST_LINE_BYTES + 1), b""), 1):
            if not line.strip():
                continue
            place = f"{path}, line {number}"
            if len(line) > _MOST_LINE_BYTES:
                msg = f"{place} has more than {_MOST_LINE_BYTES >> 20} MiB; give records of a line each"
                raise InputError(msg)
            try:
                record = json.loads(line)
            except RecursionError:
                msg = f"{place} is not valid JSON: it is nested too deeply"
                raise InputError(msg) from None
            except UnicodeDecodeError as error:
                raise _no_utf8(place, line, error) from None
            except ValueError as error:  # also of numbers with thousands of digits
                msg = f"{place} is not valid JSON: {error}"
                raise InputError(msg) from None
            if not isinstance(record, dict):
                msg = f'{place} holds a JSON {type(record).__name__}, expected an object such as {{"text": "..."}}'
                raise InputError(msg)
            yield place, record


def _read_parquet(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        with pq.ParquetFile(path) as parquet:
            number = 0
            for batch in parquet.iter_batches(batch_size=256):
                for record in batch.to_pylist():
                    yield f"{path}, row {number}", record
                    number += 1
    except (pa.ArrowException, UnicodeDecodeError, OverflowError) as error:
        msg = f"{path} is not a readable Parquet file: {error}"
        raise InputError(msg) from None


READERS = {".txt": _read_txt, ".jsonl": _read_jsonl, ".parquet": _read_parquet}
