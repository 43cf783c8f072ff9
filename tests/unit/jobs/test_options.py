"""Options of the jobs refuse what makes no sense, for callers from Python too."""

from __future__ import annotations

import pytest

from qplan.errors import InputError
from qplan.jobs.options import AnalyzeOptions, ProfileOptions


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


def test_a_limit_on_memory_is_refused_where_nothing_keeps_to_it() -> None:
    with pytest.raises(InputError, match=r"--max-memory --device cuda: .* leave one of them out"):
        AnalyzeOptions(model="m", device="cuda", max_memory_bytes=10**10)
    with pytest.raises(InputError, match=r"--max-memory --effort thorough: .* leave one of them out"):
        AnalyzeOptions(model="m", effort="thorough", max_memory_bytes=10**10)
