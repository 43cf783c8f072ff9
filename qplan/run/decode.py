"""JSON to frozen dataclasses, with errors that name the field and the line: plans are edited, files get damaged."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
from enum import Enum
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from qplan.artifact import decoding
from qplan.errors import InputError
from qplan.formats import QuantFormat
from qplan.notes import Note

Step = str | int
"""A key of an object or an index of a list."""
T = TypeVar("T")
_JSON = json.JSONDecoder()


@dataclass(frozen=True)
class JsonText:
    """A JSON text that has been parsed, kept to find the lines of values in it."""

    name: str
    text: str

    def error(self, problem: str, *path: Step) -> InputError:
        """An error that names file, line and field."""
        field = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path).lstrip(".")
        return InputError(f"{self.name}, line {self.line(*path)}, {field or 'the document'}: {problem}")

    def line(self, *path: Step) -> int:
        """Line, from 1, where the value at ``path`` begins; of its deepest parent where it is missing."""
        position = self._skip(0)
        for step in path:
            inner = self._enter(position, step)
            if inner is None:
                break
            position = inner
        return self.text.count("\n", 0, position) + 1

    def _enter(self, position: int, step: Step) -> int | None:
        """Where the value of a key or index begins, in the object or list that begins at ``position``."""
        opening, position, index = self.text[position], self._skip(position + 1), 0
        while opening in "{[" and self.text[position] not in "}]":
            key: Step = index
            if opening == "{":
                key, position = _JSON.raw_decode(self.text, position)
                position = self._skip(self._skip(position) + 1)
            if key == step:
                return position
            _, position = _JSON.raw_decode(self.text, position)
            position = self._skip(position)
            if self.text[position] == ",":
                position = self._skip(position + 1)
            index += 1
        return None

    def _skip(self, position: int) -> int:
        while self.text[position : position + 1].isspace():
            position += 1
        return position


def decode_artifact(kind: type[T], value: object, path: Path, remedy: str, *steps: Step, text: str | None = None) -> T:
    """Read what an artifact holds into a dataclass.

    Args:
        kind: the dataclass.
        value: the JSON value.
        path: the artifact.
        remedy: how to make it again.
        steps: keys and indices that lead to the value.
        text: the JSON text that holds the value, to find the line of an error; None for all of the artifact.

    Raises:
        DamagedArtifactError: a field is missing, unknown or of another type.
    """
    with decoding(path, remedy):
        return decode(
            kind, value, JsonText(str(path), path.read_text(encoding="utf-8") if text is None else text), *steps
        )


def decode(kind: type[T], value: object, source: JsonText, *path: Step) -> T:
    """Read a JSON object into a dataclass, fields checked by their annotations.

    Raises:
        InputError: a field is missing, unknown or of another type.
    """
    decoded: T = _value(kind, value, source, path)
    return decoded


def _value(  # noqa: PLR0911 - one for each kind of annotation
    kind: Any,  # noqa: ANN401 - an annotation
    value: object,
    source: JsonText,
    path: tuple[Step, ...],
) -> Any:  # noqa: ANN401 - by annotation
    if kind is QuantFormat:
        return _format(_scalar(str, value, source, path), source, path)
    if kind is Note:
        return _note(value, source, path)
    if is_dataclass(kind):
        return _object(kind, value, source, path)
    if get_origin(kind) is tuple:
        items = _expect(list, value, source, path)
        return tuple(_value(get_args(kind)[0], item, source, (*path, i)) for i, item in enumerate(items))
    if get_origin(kind) in (dict, Mapping):
        found = _expect(dict, value, source, path)
        return {key: _value(get_args(kind)[1], item, source, (*path, key)) for key, item in found.items()}
    if get_origin(kind) is UnionType:
        inner = next(k for k in get_args(kind) if k is not NoneType)
        return None if value is None else _value(inner, value, source, path)
    if get_origin(kind) is Literal:
        return _one_of(get_args(kind), value, source, path)
    if isinstance(kind, type) and issubclass(kind, Enum):
        return kind(_one_of([member.value for member in kind], value, source, path))
    return _scalar(kind, value, source, path)


def _object(kind: Any, value: object, source: JsonText, path: tuple[Step, ...]) -> Any:  # noqa: ANN401 - by annotation
    found = _expect(dict, value, source, path)
    known = {field.name: field for field in fields(kind)}
    for key in found:
        if key not in known:
            problem = f"unknown field; the fields here are {', '.join(known)}"
            raise source.error(problem, *path, key)
    for name, field in known.items():
        if name not in found and field.default is MISSING and field.default_factory is MISSING:
            problem = f"the field {name!r} is missing"
            raise source.error(problem, *path)
    hints = get_type_hints(kind)
    return kind(**{key: _value(hints[key], item, source, (*path, key)) for key, item in found.items()})


def _one_of(known: Sequence[object], value: object, source: JsonText, path: tuple[Step, ...]) -> object:
    if type(value) not in (str, int) or value not in known:
        problem = f"expected one of {', '.join(map(str, known))}, found {json.dumps(value)}"
        raise source.error(problem, *path)
    return value


def _format(name: str, source: JsonText, path: tuple[Step, ...]) -> QuantFormat:
    try:
        return QuantFormat.parse(name)
    except InputError as error:
        raise source.error(str(error), *path) from None


def _note(value: object, source: JsonText, path: tuple[Step, ...]) -> Note:
    try:
        return Note.of_json(value)
    except ValueError as error:
        raise source.error(str(error), *path) from None


def _scalar(kind: type[T], value: object, source: JsonText, path: tuple[Step, ...]) -> T:
    if kind is float and type(value) is int:
        value = float(value) if abs(value) < _LARGEST else math.inf
    found = _expect(kind, value, source, path)
    if isinstance(found, float) and not math.isfinite(found):
        problem = f"{found} is not a number that a plan may hold"
        raise source.error(problem, *path)
    if isinstance(found, int) and abs(found) > _LARGEST:
        problem = f"the number is too large; at most {_LARGEST} is read"
        raise source.error(problem, *path)
    return found


_LARGEST = 10**18
"""Largest whole number, exact in the 64 bits that plans are solved in."""

_KINDS: dict[type, str] = {
    str: "a text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    list: "a list",
    dict: "an object",
}


def _expect(kind: type[T], value: object, source: JsonText, path: tuple[Step, ...]) -> T:
    # not isinstance: JSON's true is no whole number
    if type(value) is kind:
        return value
    found = _KINDS[type(value)] if isinstance(value, dict | list) else json.dumps(value)
    problem = f"expected {_KINDS[kind]}, found {found}"
    raise source.error(problem, *path)
