"""One record of a data file or dataset, and the text in it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from qplan.errors import InputError

FIELDS = ("text", "content", "messages")
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
        InputError: no such field, a field that is not text, or messages without a template.
    """
    field = next((name for name in FIELDS if record.values.get(name) is not None), None)
    if field is None:
        msg = f"{record.place} has none of the fields {', '.join(FIELDS)}; it has {', '.join(record.values) or 'none'}"
        raise InputError(msg)
    value = record.values[field]
    if field == "messages":
        return _chat(record.place, value, tokenizer)
    if not isinstance(value, str):
        msg = f"{record.place}: field {field!r} holds a {type(value).__name__}, expected text"
        raise InputError(msg)
    return value


def _chat(place: str, messages: Any, tokenizer: Any) -> str:  # noqa: ANN401
    if not getattr(tokenizer, "chat_template", None):
        msg = f"{place} holds chat messages and the model's tokenizer has no chat template; give plain text instead"
        raise InputError(msg)
    if not isinstance(messages, list) or not all(
        isinstance(m, dict) and {"role", "content"} <= set(m) for m in messages
    ):
        msg = f"{place}: 'messages' must be a list of objects with role and content"
        raise InputError(msg)
    return str(tokenizer.apply_chat_template(messages, tokenize=False))
