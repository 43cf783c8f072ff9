"""Options of the jobs refuse what makes no sense, for callers from Python too."""

from __future__ import annotations

import pytest

from qplan.errors import InputError
from qplan.jobs.options import ProfileOptions


@pytest.mark.parametrize(
    ("field", "name"),
    [
        ("threads", "--threads"),
        ("prompt_tokens", "--prompt-tokens"),
        ("decode_tokens", "decode_tokens"),
        ("repeats", "repeats"),
        ("rounds", "--rounds"),
    ],
)
def test_a_profile_measures_at_least_one_of_everything(field: str, name: str) -> None:
    with pytest.raises(InputError, match=f"^{name} 0: must be at least 1$"):
        ProfileOptions(**{field: 0})
