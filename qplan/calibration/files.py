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
        utf16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        found = "it begins like UTF-16" if utf16 else f"{error.reason} at byte {error.start:,}"
        convert = f"iconv -f {'UTF-16' if utf16 else 'GB18030'} -t UTF-8"
        msg = f"{path} is not UTF-8 text: {found}; convert it, e.g. with {convert}"
        raise InputError(msg) from None
    yield str(path), {"text": text[:MAX_CHARACTERS]}


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
            except ValueError as error:  # also of UTF-8, and of numbers with thousands of digits
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
