"""Reads text from what the user names: a set of calib/, a file, or a dataset."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from qplan.artifact import sha256_file
from qplan.calib_sets import MANIFEST, calib_sets
from qplan.calibration import files
from qplan.calibration.chat import RefusedRecordError
from qplan.calibration.door import check_text, refuse_empty
from qplan.calibration.files import records_of
from qplan.calibration.hub import read_dataset
from qplan.calibration.record import Record, document
from qplan.errors import InputError
from qplan.notes import Note, note
from qplan.settings import Say

_LOOKED_AT = 10_000
"""Characters that tell whether a tokenizer knows a script. It takes them apart into bytes if it does not."""


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
    names: tuple[str, ...] = ()
    """Of the documents, where each is a kind of text of its own; as much is then to be taken of each."""

    @property
    def kinds(self) -> bool:
        """Whether there are kinds of text to choose from."""
        return len(self.names) > 1

    def known_to(self, encode: Callable[[str], Sequence[int]], say: Say | None = None) -> Text:
        """The text without kinds in a script that a tokenizer hardly knows, unless it knows none.

        Args:
            encode: the tokenizer.
            say: told what was left out.
        """
        if not self.kinds:
            return self
        starts = [document[:_LOOKED_AT] for document in self.documents]
        lengths = [len(encode(start)) / len(start) for start in starts]
        known = [place for place, length in enumerate(lengths) if length <= 1]
        if not known or len(known) == len(lengths):
            return self
        notes = tuple(
            note("script-unknown", file=name, source=self.source, tokens=round(length, 1))
            for name, length in zip(self.names, lengths, strict=True)
            if length > 1
        )
        if say is not None:
            for told in notes:
                say(str(told))
        documents, names = (tuple(part[place] for place in known) for part in (self.documents, self.names))
        return replace(self, documents=documents, names=names, notes=(*self.notes, *notes))


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
        text = _read(records_of(path), tokenizer, source, None)
    elif not path.is_dir() and (folder := calib_sets().get(source)) is not None:
        text = _calib_set(folder)
    else:
        records, described, license_ = read_dataset(source, known=calib_sets())
        text = _read(records, tokenizer, described, license_)
    if not any(part.strip() for part in text.documents):
        refuse_empty(source)
    for told in text.notes:
        if say is not None:
            say(str(told))
    if tokenizer is None:
        return text
    return text.known_to(lambda part: tokenizer(part, add_special_tokens=False, verbose=False)["input_ids"], say)


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
    return Text(documents, str(manifest["name"]), manifest.get("licence"), names=tuple(names))


def _capped(documents: Iterable[str]) -> tuple[str, ...]:
    kept: list[str] = []
    total = 0
    for text in documents:
        kept.append(text[: files.MAX_CHARACTERS - total])
        total += len(kept[-1])
        if total >= files.MAX_CHARACTERS:
            break
    return tuple(kept)
