"""Chat templates that loop for ever or fill the memory are found before they are rendered here."""

from __future__ import annotations

import pytest

from qplan.calibration import bounded
from qplan.calibration.bounded import check_ends
from qplan.errors import InputError, ToolError
from tests.support.tiny_models import CHAT_TEMPLATE

GREETING = [{"role": "user", "content": "Hello"}]
LOOP = "{% for a in range(99999) %}" * 3 + "{% endfor %}" * 3


@pytest.mark.parametrize(
    ("template", "passed"),
    [
        (LOOP, "does not end within 1 s"),
        ("{% generation %}" + LOOP + "{% endgeneration %}", "does not end within 1 s"),
        ("{{ 'a' * 10 ** 10 }}", "takes more than 1 GiB"),
    ],
    ids=["loop", "loop within a generation", "memory"],
)
def test_what_does_not_end_is_refused(monkeypatch: pytest.MonkeyPatch, template: str, passed: str) -> None:
    monkeypatch.setattr(bounded, "_SECONDS", 1)
    with pytest.raises(InputError, match=f"chat template {passed} on a greeting; mend it"):
        check_ends(template, GREETING)


@pytest.mark.parametrize(
    "template",
    [
        CHAT_TEMPLATE,
        "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% break %}{% endfor %}",
        "{{ raise_exception('no') }}",
        "{% for m in %}",
        "{% for i in range(10 ** 12) %}x{% endfor %}",
        "{% macro f(n) %}{{ f(n) }}{% endmacro %}{{ f(1) }}",
    ],
    ids=["plain", "generation", "raises", "does not parse", "range", "recursion"],
)
def test_what_ends_is_left_to_transformers(template: str) -> None:
    check_ends(template, GREETING)


def test_a_process_that_fails_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounded, "_CHILD", "import nothing_of_this_name")
    with pytest.raises(ToolError, match="the process that tries the chat template failed"):
        check_ends("", GREETING)
