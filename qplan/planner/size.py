"""Sizes as users write them: ``300MB``, ``1.2 GiB``."""

from __future__ import annotations

import re
from dataclasses import dataclass

from qplan.errors import InputError

UNITS = {
    "b": 1,
    "bytes": 1,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "tb": 10**12,
    "kib": 2**10,
    "mib": 2**20,
    "gib": 2**30,
    "tib": 2**40,
}
"""Bytes per unit, by the unit's name in lower case."""

MOST_BYTES = 10**18
"""Largest size that is understood: exact in the 64 bits that plans are solved in."""

NUMBER = r"[0-9]{1,18}(?:\.[0-9]{0,18})?|\.[0-9]{1,18}"
"""Regular expression of a number as users write it: ASCII digits, and no more than any sensible amount has."""

_SIZE = re.compile(rf"({NUMBER})\s*([a-z]+)")


@dataclass(frozen=True)
class Size:
    """A number of bytes that a user gave."""

    text: str
    """As the user wrote it."""
    bytes: float

    @classmethod
    def parse(cls, text: str, option: str) -> Size:
        """Read a size.

        Args:
            text: a number and one of `UNITS`, in either case.
            option: the option that it was given with, for the message.

        Raises:
            InputError: the text is not a size of at least a byte, or one above `MOST_BYTES`.
        """
        match = _SIZE.fullmatch(text.strip().lower())
        size = 0.0 if match is None else float(match[1]) * UNITS.get(match[2], 0)
        if not 1 <= size <= MOST_BYTES:
            msg = (
                f"{option} {text!r} is not understood; write a size of at least a byte and at most 10^18 bytes, for "
                "example 300MB or 1.2GB"
            )
            raise InputError(msg)
        return cls(text, size)
