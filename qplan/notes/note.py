"""One thing that a reader must know: a code and the values that its sentence is written with."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import get_args, get_origin

from qplan.notes.catalog import CATALOG, FieldType
from qplan.notes.sentence import ENGLISH, Grammar, write

Scalar = str | int | float | None
"""None stands for a number that is not finite: JSON has none."""
Value = Scalar | tuple[Scalar, ...] | Mapping[str, Scalar]
Given = Scalar | Sequence[Scalar] | Mapping[str, Scalar]
"""What a `Value` is made from."""

TEXT = "text"


@dataclass(frozen=True)
class Note:
    """A code and its values; made by `note`, or read from an artifact, which a newer qplan may have written."""

    code: str
    values: Mapping[str, Value] = field(default_factory=dict)
    """By field, see `qplan.notes.catalog`."""

    def __post_init__(self) -> None:
        """Hold values as they are read back: lists as tuples, numbers that are not finite as None."""
        object.__setattr__(self, "values", {name: _stored(value) for name, value in self.values.items()})

    @property
    def is_known(self) -> bool:
        """Whether this version has a sentence for it: the code is in the catalog, and so are exactly its values."""
        kind = CATALOG.get(self.code)
        return kind is not None and not _misfits(kind.fields, self.values)

    @property
    def is_text(self) -> bool:
        """Whether it is shown as it is, in every language: a text, or what this version has no sentence for."""
        return self.code == TEXT or not self.is_known

    def __str__(self) -> str:
        """The sentence in English."""
        kind = CATALOG.get(self.code)
        return self.told("" if kind is None else kind.sentence, ENGLISH)

    def told(self, template: str, grammar: Grammar) -> str:
        """The sentence written with a template for its code; the bare code and values if it is not known."""
        if self.is_known:
            return write(template, self.values, grammar)
        values = ", ".join(f"{name} = {json.dumps(value, ensure_ascii=False)}" for name, value in self.values.items())
        return f"{self.code}: {values}" if values else self.code

    def to_json(self) -> object:
        """As artifacts hold it: an object with ``code`` and ``values``; a text is a string, as it always was."""
        if self.code == TEXT and self.is_known:
            return self.values["text"]
        return {"code": self.code, "values": dict(self.values)}

    @classmethod
    def of_json(cls, value: object) -> Note:
        """Read what `to_json` made; codes and fields of newer versions are kept as they are.

        Raises:
            ValueError: the value is not a note.
        """
        if isinstance(value, str):
            return text_note(value)
        if isinstance(value, Mapping) and set(value) <= {"code", "values"}:
            code, values = value.get("code"), value.get("values", {})
            if isinstance(code, str) and isinstance(values, Mapping) and all(map(_is_value, values.values())):
                return cls(code, values)
        msg = 'expected a text, or an object with "code" and "values"'
        raise ValueError(msg)


def note(code: str, /, **values: Given) -> Note:
    """Make a note.

    Args:
        code: a code of the catalog.
        values: a value for every field.

    Raises:
        TypeError: an unknown code; a field that is missing, unknown or of another type.
    """
    kind = CATALOG.get(code)
    if kind is None:
        msg = f"there is no note {code!r}; add it to qplan.notes.catalog"
        raise TypeError(msg)
    made = Note(code, values)  # type: ignore[arg-type]  # lists become tuples
    if misfits := _misfits(kind.fields, made.values):
        msg = f"note {code!r}: {', '.join(misfits)} of {values!r} do not fit {dict(kind.fields)!r}"
        raise TypeError(msg)
    return made


def text_note(text: str) -> Note:
    """A text that is shown as it is, in every language."""
    return note(TEXT, text=text)


def few(names: Sequence[str], most: int = 3) -> tuple[Sequence[str], int]:
    """The first names of many, and how many others there are."""
    return names[:most], max(0, len(names) - most)


def _stored(value: object) -> object:
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, list | tuple):
        return tuple(_stored(item) for item in value)
    if isinstance(value, Mapping):
        return {name: _stored(item) for name, item in value.items()}
    return value


def _is_value(value: object) -> bool:
    """Whether a JSON value may stand in a note of some version."""
    items = value if isinstance(value, list) else value.values() if isinstance(value, Mapping) else (value,)
    return all(item is None or isinstance(item, str | int | float) for item in items)


def _misfits(fields: Mapping[str, FieldType], values: Mapping[str, object]) -> list[str]:
    """Fields that are missing, unknown or of another type."""
    wrong = sorted(set(fields) ^ set(values))
    return wrong + [name for name, kind in fields.items() if name in values and not _fits(values[name], kind)]


def _fits(value: object, kind: FieldType) -> bool:
    if get_origin(kind) is list:
        return isinstance(value, tuple) and all(_fits(item, get_args(kind)[0]) for item in value)
    if get_origin(kind) is dict:
        return isinstance(value, Mapping) and all(
            isinstance(name, str) and _fits(item, get_args(kind)[1]) for name, item in value.items()
        )
    if isinstance(value, bool):  # Python's booleans are whole numbers
        return False
    if kind is float:
        return value is None or isinstance(value, int | float)
    return isinstance(kind, type) and isinstance(value, kind)
