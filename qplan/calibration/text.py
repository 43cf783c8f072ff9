"""Reads text from what the user names: a set of calib/, a file, or a dataset."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from qplan.artifact import sha256_file
from qplan.calib_sets import MANIFEST, calib_sets
from qplan.calibration.chat import RefusedRecordError
from qplan.calibration.hub import read_dataset
from qplan.calibration.record import Record, document
from qplan.errors import InputError
from qplan.notes import Note, note
from qplan.settings import Say

MAX_CHARACTERS = 20_000_000
"""More text than this is left unread: some five million tokens, far more than a calibration takes."""


@dataclass(frozen=True)
class Text:
    """Documents and where they come from."""

    documents: tuple[str, ...]
    source: str
    """For people: the name or path as the user gave it."""
    license: str | None
    """The license, if it is known."""
    notes: tuple[Note, ...] = ()
    """What was left out or replaced."""


def load_text(source: str, tokenizer: Any = None, say: Say | None = None) -> Text:  # noqa: ANN401 - a Hugging Face tokenizer
    """Read a calibration text.

    Args:
        source: a name from calib/; a .txt, .jsonl or .parquet file; or a dataset: a local folder or a hub id, with
            ``:config`` and ``:split`` if wanted. Records hold ``text``, ``content`` or chat ``messages``.
        tokenizer: renders chat messages with its template; needed only for them.
        say: told what was left out or replaced.

    Raises:
        InputError: the source is not found, not understood, or empty.
    """
    check_text(source)
    path = Path(source).expanduser()
    if path.is_file():
        text = _read(_records(path), tokenizer, source, None)
    elif not path.is_dir() and (folder := calib_sets().get(source)) is not None:
        text = _calib_set(folder)
    else:
        records, described, license_ = read_dataset(source, known=calib_sets())
        text = _read(records, tokenizer, described, license_)
    if not any(part.strip() for part in text.documents):
        msg = f"{source} holds no text; give a source with at least a few thousand tokens"
        raise InputError(msg)
    for told in text.notes:
        if say is not None:
            say(str(told))
    return text


def check_text(source: str, option: str = "") -> None:
    """Refuse a text that is clearly missing or unusable, without reading it.

    Args:
        source: as for `load_text`.
        option: the option that it was given with, for the message.

    Raises:
        InputError: a file that does not exist, or whose extension is not understood.
    """
    given = f"{option} {source}".strip()
    kinds = ", ".join(_READERS)
    if not source.strip():
        msg = f"{given or 'the text'} is empty; give a {kinds} file, a dataset, or one of {', '.join(calib_sets())}"
        raise InputError(msg)
    try:
        path = Path(source).expanduser()
        is_file, exists = path.is_file(), path.exists()
    except (OSError, RuntimeError) as error:  # a name that no file system takes, or the home of nobody
        msg = f"{given:.100} cannot be a file or a dataset: {getattr(error, 'strerror', None) or error}"
        raise InputError(msg) from None
    if is_file and path.suffix.lower() not in _READERS:
        msg = f"{given}: extension {path.suffix!r} is not understood; use {kinds} or a dataset folder"
        raise InputError(msg)
    if not exists and path.suffix.lower() in _READERS:
        msg = f"{given} does not exist; give a {kinds} file, a dataset, or one of {', '.join(calib_sets())}"
        raise InputError(msg)


def _read(records: Iterable[Record], tokenizer: Any, source: str, license_: str | None) -> Text:  # noqa: ANN401
    """The documents of records, without those that the model's chat template refuses.

    Raises:
        InputError: a record that is not understood, or all of them are refused.
    """
    refused: list[RefusedRecordError] = []
    mended = 0

    def documents() -> Iterator[str]:
        nonlocal mended
        for record in records:
            try:
                found = document(record, tokenizer)
            except RefusedRecordError as problem:
                refused.append(problem)
                continue
            whole = _without_surrogates(found)
            mended += whole != found
            yield whole

    kept = _capped(documents())
    if refused and not kept:
        msg = f"none of the {len(refused)} records of {source} can be used. The first: {refused[0]}"
        raise InputError(msg)
    notes = []
    if refused:
        first = str(refused[0])
        notes.append(note("records-refused", refused=len(refused), used=len(kept), source=source, first=first))
    if mended:
        notes.append(note("surrogates-replaced", records=mended, source=source))
    return Text(kept, source, license_, tuple(notes))


def _without_surrogates(text: str) -> str:
    """Halves of surrogate pairs, which are no characters and which tokenizers refuse, joined or replaced by U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def _calib_set(folder: Path) -> Text:
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    names, expected = manifest["files"], manifest["sha256"]
    # one hash for one file, a hash by name for several
    hashes = expected if isinstance(expected, dict) else {names[0]: expected}
    for name in names:
        found = sha256_file(folder / name)
        if found != hashes.get(name):
            msg = f"{folder / name} has sha256 {found}, its manifest says {hashes.get(name)}; restore the file"
            raise InputError(msg)
    documents = tuple((folder / name).read_text(encoding="utf-8") for name in names)
    return Text(documents, str(manifest["name"]), manifest.get("licence"))


def _records(path: Path) -> Iterator[Record]:
    try:
        for place, record in _READERS[path.suffix.lower()](path):
            yield Record(place, record)
    except OSError as error:
        msg = f"{path} cannot be read: {error.strerror or error}"
        raise InputError(msg) from None


def _read_txt(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        with path.open(encoding="utf-8", newline="") as stream:
            yield str(path), {"text": stream.read(MAX_CHARACTERS)}
    except UnicodeDecodeError as error:
        msg = f"{path} is not UTF-8 text: {error.reason} at byte {error.start}; convert it"
        raise InputError(msg) from None


def _read_jsonl(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    with path.open("rb") as stream:
        for number, line in enumerate(stream, 1):
            if not line.strip():
                continue
            place = f"{path}, line {number}"
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


_READERS = {".txt": _read_txt, ".jsonl": _read_jsonl, ".parquet": _read_parquet}


def _capped(documents: Iterable[str]) -> tuple[str, ...]:
    kept: list[str] = []
    total = 0
    for text in documents:
        kept.append(text[: MAX_CHARACTERS - total])
        total += len(kept[-1])
        if total >= MAX_CHARACTERS:
            break
    return tuple(kept)
