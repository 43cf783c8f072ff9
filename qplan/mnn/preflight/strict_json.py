"""JSON as the engine's parser takes it, which is stricter than Python's: it drops a whole file for one such value."""

from __future__ import annotations

import math

from qplan.artifact import parse_json
from qplan.errors import InputError


def parse_strict(data: bytes) -> object:
    """A JSON value that the engine reads too.

    Raises:
        InputError: not JSON, or a number or text in it that Python takes and the engine's parser does not.
    """
    value = parse_json(data)
    problem = _problem(value)
    if problem:
        raise InputError(problem)
    return value


def _problem(value: object) -> str:
    waiting = [("", value)]
    while waiting:
        where, item = waiting.pop()
        if isinstance(item, dict):
            if any(_lone_surrogate(key) for key in item):
                return f"{where or 'it'} has a key with half of a surrogate pair"
            waiting += [(f"{where}.{key}" if where else key, part) for key, part in item.items()]
        elif isinstance(item, list):
            waiting += [(f"{where}[{place}]", part) for place, part in enumerate(item)]
        elif isinstance(item, str) and _lone_surrogate(item):
            return f"{where or 'it'} holds half of a surrogate pair, which is no character"
        elif isinstance(item, int | float) and not _finite(item):
            return f"{where or 'it'} is NaN or a number beyond 1.8e308, which is not JSON"
    return ""


def _lone_surrogate(text: str) -> bool:
    """Whether a first half has no second; the engine takes a second half alone."""
    return any("\ud800" <= character <= "\udbff" for character in text)


def _finite(number: float) -> bool:
    try:
        return math.isfinite(number)
    except OverflowError:  # a whole number of hundreds of digits
        return False
