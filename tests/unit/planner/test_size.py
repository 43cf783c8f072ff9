"""Sizes as users write them."""

from __future__ import annotations

import pytest

from qplan.errors import InputError
from qplan.planner.size import Size


@pytest.mark.parametrize(
    ("text", "expected"),
    [("300MB", 3e8), ("1.2 GB", 1.2e9), (".5gib", 2**29), ("7 bytes", 7), ("300mb", 3e8), ("1TB", 1e12)],
)
def test_a_size_is_bytes_and_keeps_the_words_of_its_user(text: str, expected: float) -> None:
    assert Size.parse(text, "--max-ram") == Size(text, expected)


@pytest.mark.parametrize("text", ["", "300", "3OOMB", "3 parsecs", "-1MB", "0MB", "0.5B", "60%", "4bpw"])
def test_a_refused_size_comes_with_its_option_and_a_remedy(text: str) -> None:
    with pytest.raises(InputError) as error:
        Size.parse(text, "--max-ram")
    assert f"--max-ram {text!r}" in str(error.value)
    assert "300MB or 1.2GB" in str(error.value)
