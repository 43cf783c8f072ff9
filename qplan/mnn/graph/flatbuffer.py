"""Reads flatbuffers without generated code: tables, vectors and strings by field number, every access within bounds.

The format: https://flatbuffers.dev/internals/. A truncated or damaged file raises; nothing is read past its end.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from qplan.errors import InputError

_INT8, _UINT8, _UINT16, _INT32, _UINT32 = map(struct.Struct, ("<b", "<B", "<H", "<i", "<I"))


@dataclass(frozen=True)
class Table:
    """One table of a flatbuffer; absent fields have their defaults."""

    data: bytes
    position: int
    """Where the table starts in ``data``."""

    @classmethod
    def root(cls, data: bytes) -> Table:
        """The outermost table.

        Raises:
            InputError: not a flatbuffer.
        """
        return cls(data, _read(data, 0, _UINT32))

    def _field(self, number: int) -> int:
        """Position of a field's value; 0 if the table does not have it."""
        vtable = self.position - _read(self.data, self.position, _INT32)
        size = _read(self.data, vtable, _UINT16)
        place = 4 + 2 * number
        if place + 2 > size:
            return 0
        offset = _read(self.data, vtable + place, _UINT16)
        return self.position + offset if offset else 0

    def has(self, number: int) -> bool:
        """Whether the field is there."""
        return self._field(number) != 0

    def int32(self, number: int, default: int = 0) -> int:
        """A 32-bit integer."""
        place = self._field(number)
        return _read(self.data, place, _INT32) if place else default

    def int8(self, number: int, default: int = 0) -> int:
        """A byte, e.g. of a small enum."""
        place = self._field(number)
        return _read(self.data, place, _INT8) if place else default

    def uint8(self, number: int, default: int = 0) -> int:
        """An unsigned byte, e.g. a union's type or a bool."""
        place = self._field(number)
        return _read(self.data, place, _UINT8) if place else default

    def string(self, number: int) -> str:
        """A string; empty if absent."""
        place = self._field(number)
        return _string(self.data, _follow(self.data, place)) if place else ""

    def table(self, number: int) -> Table | None:
        """A table, or the value of a union."""
        place = self._field(number)
        return Table(self.data, _follow(self.data, place)) if place else None

    def int32s(self, number: int) -> tuple[int, ...]:
        """A vector of 32-bit integers."""
        return self._numbers(number, "i", 4)

    def int64s(self, number: int) -> tuple[int, ...]:
        """A vector of 64-bit integers."""
        return self._numbers(number, "q", 8)

    def tables(self, number: int) -> Iterator[Table]:
        """A vector of tables."""
        for place in self._slots(number):
            yield Table(self.data, _follow(self.data, place))

    def strings(self, number: int) -> tuple[str, ...]:
        """A vector of strings."""
        return tuple(_string(self.data, _follow(self.data, place)) for place in self._slots(number))

    def length(self, number: int) -> int:
        """Elements of a vector; 0 if absent."""
        place = self._field(number)
        return _read(self.data, _follow(self.data, place), _UINT32) if place else 0

    def _numbers(self, number: int, code: str, size: int) -> tuple[int, ...]:
        place = self._field(number)
        if not place:
            return ()
        start = _follow(self.data, place)
        count = _count(self.data, start, size)
        return struct.unpack_from(f"<{count}{code}", self.data, start + 4)

    def _slots(self, number: int) -> range:
        """Positions of a vector's references."""
        place = self._field(number)
        if not place:
            return range(0)
        start = _follow(self.data, place)
        return range(start + 4, start + 4 + 4 * _count(self.data, start, 4), 4)


def _read(data: bytes, place: int, number: struct.Struct) -> int:
    if not 0 <= place <= len(data) - number.size:
        msg = f"a reference points to byte {place} of {len(data)}: the file is truncated or damaged"
        raise InputError(msg)
    value: int = number.unpack_from(data, place)[0]
    return value


def _follow(data: bytes, place: int) -> int:
    return place + _read(data, place, _UINT32)


def _count(data: bytes, start: int, size: int) -> int:
    count = _read(data, start, _UINT32)
    if start + 4 + count * size > len(data):
        msg = f"a vector of {count} elements starts at byte {start} of {len(data)}: the file is truncated or damaged"
        raise InputError(msg)
    return count


def _string(data: bytes, start: int) -> str:
    count = _count(data, start, 1)
    if data[start + 4 + count : start + 5 + count] != b"\0":
        msg = f"the string at byte {start} has no end: the file is truncated or damaged"
        raise InputError(msg)
    try:
        return data[start + 4 : start + 4 + count].decode("utf-8")
    except UnicodeDecodeError:
        msg = f"the string at byte {start} is not text: the file is damaged"
        raise InputError(msg) from None
