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
    "kib": 2**10,
    "mib": 2**20,
    "gib": 2**30,
}
"""Bytes per unit, by the unit's name in lower case."""

_SIZE = re.compile(r"^(\d+(?:\.\d*)?|\.\d+)\s*([a-z]+)$")


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
            InputError: the text is not a size above 0.
        """
        match = _SIZE.match(text.strip().lower())
        if match is None or match[2] not in UNITS or float(match[1]) <= 0:
            msg = f"{option} {text!r} is not understood; write a size above 0, for example 300MB or 1.2GB"
            raise InputError(msg)
        return cls(text, float(match[1]) * UNITS[match[2]])
