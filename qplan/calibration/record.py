"""One record of a data file or dataset, and the text in it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from qplan.calibration.chat import render
from qplan.errors import InputError

MESSAGES = "messages"
"""Field of a conversation; the other fields hold text."""

FIELDS = ("text", "content", MESSAGES)
"""Where the text of a record may be, in order of preference."""


@dataclass(frozen=True)
class Record:
    """A record and where it comes from."""

    place: str
    """For people: file and line, or dataset and row."""
    values: Mapping[str, Any]


def document(record: Record, tokenizer: Any) -> str:  # noqa: ANN401 - a Hugging Face tokenizer
    """The text of a record; chat messages are rendered with the tokenizer's template.

    Raises:
        RefusedRecordError: the template refuses the messages.
        InputError: no such field, a field that is null or not text, or messages that cannot be rendered.
    """
    field, value = field_of(record)
    if field == MESSAGES:
        return render(record.place, value, record.values.get("tools"), tokenizer)
    return str(value)


def field_of(record: Record) -> tuple[str, Any]:
    """Where the text of a record is, and what is there: text, or anything for `MESSAGES`.

    Raises:
        InputError: no such field, or one that is null or not text.
    """
    field = next((name for name in FIELDS if record.values.get(name) is not None), None)
    if field is None:
        null = next((name for name in FIELDS if name in record.values), None)
        if null is not None:
            msg = f"{null} is null in {record.place}; give it text, or take the record out"
            raise InputError(msg)
        msg = f"{record.place} has none of the fields {', '.join(FIELDS)}; it has {', '.join(record.values) or 'none'}"
        raise InputError(msg)
    value = record.values[field]
    if field != MESSAGES and not isinstance(value, str):
        msg = f"{record.place}: field {field!r} holds a {type(value).__name__}, expected text"
        raise InputError(msg)
    return field, value
