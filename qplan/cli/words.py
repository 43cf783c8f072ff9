"""Words of the command line that Python would read as something that nobody writes: empty ones, and odd numbers.

What typer says of the others is said as qplan says it: with the value, and without the names of its own errors.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import typer
from typer.core import TyperArgument, TyperOption


def is_plain(number: str) -> bool:
    """Whether a number is written in ASCII digits without underscores, which Python's own notation has."""
    return number.isascii() and "_" not in number


def check_words(parameter: TyperOption | TyperArgument) -> None:
    """Have an option or argument refuse empty words, and numbers in no plain notation; mend what typer says of others.

    An empty path would be the current folder: often a variable of a shell script that was never set.
    """
    convert: Callable[[Any, Any], Any] = parameter.process_value

    def process_value(context: Any, value: Any) -> Any:  # noqa: ANN401 - typer's own
        words = value if isinstance(value, list | tuple) else (value,)
        if any(isinstance(word, str) and not word.strip() for word in words):
            msg = "is empty; write a value, or leave it out"
            raise typer.BadParameter(msg, ctx=context, param=parameter)
        try:
            found = convert(context, value)
        except typer.BadParameter as error:
            error.message = _in_plain_words(error.message, value)
            raise
        if isinstance(found, int | float) and isinstance(value, str) and not is_plain(value):
            msg = f"{value!r} is no number in plain digits, e.g. 10 or 0.5"
            raise typer.BadParameter(msg, ctx=context, param=parameter)
        return found

    parameter.process_value = process_value  # type: ignore[method-assign, assignment]


_PREFIX = "Value error, "
"""Before what pydantic, which typer converts words with, passes on from others."""

_EXPECTED = {
    "Input should be a valid integer": "whole number, e.g. 10",
    "Input should be a valid number": "number, e.g. 0.5",
}
"""What a word was to be, by how pydantic begins to say that it is not; it leaves the word out."""


def _in_plain_words(message: str, value: object) -> str:
    """What is wrong with a value, without what only those know who wrote the parser."""
    wanted = next((words for begins, words in _EXPECTED.items() if message.startswith(begins)), None)
    return message.removeprefix(_PREFIX) if wanted is None else f"{value!r} is no {wanted}"
