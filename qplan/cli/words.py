"""Words of the command line that Python would read as something that nobody writes: empty ones, and odd numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import typer
from typer.core import TyperArgument, TyperOption


def is_plain(number: str) -> bool:
    """Whether a number is written in ASCII digits without underscores, which Python's own notation has."""
    return number.isascii() and "_" not in number


def check_words(parameter: TyperOption | TyperArgument) -> None:
    """Have an option or argument refuse empty words, and numbers in no plain notation.

    An empty path would be the current folder: often a variable of a shell script that was never set.
    """
    convert: Callable[[Any, Any], Any] = parameter.process_value

    def process_value(context: Any, value: Any) -> Any:  # noqa: ANN401 - typer's own
        words = value if isinstance(value, list | tuple) else (value,)
        if any(isinstance(word, str) and not word.strip() for word in words):
            msg = "is empty; write a value, or leave it out"
            raise typer.BadParameter(msg, ctx=context, param=parameter)
        found = convert(context, value)
        if isinstance(found, int | float) and isinstance(value, str) and not is_plain(value):
            msg = f"{value!r} is no number in plain digits, e.g. 10 or 0.5"
            raise typer.BadParameter(msg, ctx=context, param=parameter)
        return found

    parameter.process_value = process_value  # type: ignore[method-assign, assignment]
