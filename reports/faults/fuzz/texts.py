"""Calibration texts and chat templates, from what people have to what nobody should."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from reports.faults.fuzz.damage import Damage
from reports.faults.fuzz.values import JSON
from reports.faults.fuzz.values import TEXTS as WORDS

_LONG = "the quick brown fox jumps over the lazy dog and runs away from all of them again " * 4

_CONTENT = st.one_of(
    st.just(_LONG),
    WORDS,
    st.none(),
    st.just([{"type": "text", "text": _LONG}]),
    st.just([{"type": "image", "url": "x"}]),
    JSON,
)

_MESSAGE = st.fixed_dictionaries(
    {},
    optional={
        "role": st.sampled_from(["user", "assistant", "system", "tool", "", "USER"]) | JSON,
        "content": _CONTENT,
        "from": st.sampled_from(["human", "gpt"]),
        "value": _CONTENT,
        "tool_calls": st.just([{"function": {"name": "f", "arguments": "{}"}}]) | JSON,
    },
)

_RECORD = st.one_of(
    st.fixed_dictionaries({"text": _CONTENT}),
    st.fixed_dictionaries({"messages": st.lists(_MESSAGE, max_size=3)}),
    st.fixed_dictionaries({"conversations": st.lists(_MESSAGE, max_size=3)}),
    st.fixed_dictionaries({"prompt": _CONTENT}, optional={"completion": _CONTENT, "response": _CONTENT}),
    st.fixed_dictionaries({"instruction": _CONTENT, "input": _CONTENT, "output": _CONTENT}),
    JSON,
)


def _jsonl(records: list[Any], end: str) -> bytes:
    return end.join(json.dumps(record) for record in records).encode("utf-8", "surrogatepass")


def texts() -> st.SearchStrategy[bytes]:
    """Contents of a calibration file."""
    records = st.lists(_RECORD, max_size=4)
    return st.one_of(
        st.builds(_jsonl, records, st.sampled_from(["\n", "\r\n", "\n\n", " "])),
        records.map(lambda found: json.dumps(found).encode()),
        st.binary(max_size=200),
        WORDS.map(lambda word: (_LONG + word).encode("utf-8", "surrogatepass")),
        st.sampled_from(
            [b"", b"\0" * 5000, b"\xff\xfe" + _LONG.encode("utf-16-le"), "中文文本".encode("gbk") * 300, b" " * 5000]
        ),
    )


_TEMPLATES = (
    *("{{ raise_exception('no') }}", "{% for m in messages %}", "{{ messages[0]['role'] / 0 }}", "{{ x.y.z }}", "{{"),
    *("{{ 9 ** 99999 }}", "{% for i in range(10 ** 9) %}x{% endfor %}", "{{ messages | tojson }}", "{% include 'x' %}"),
    *(
        "{{ ''.__class__.__mro__ }}",
        "{{ cycler.__init__.__globals__ }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    ),
    *(
        "",
        " ",
        "\0",
        "\ufeff{{ messages }}",
        "plain",
        "{% generation %}{% endgeneration %}",
        "{{ strftime_now('%Y') }}",
    ),
)


def templates(file: str) -> st.SearchStrategy[Damage]:
    """Chat templates that fail, or should not be run."""

    def make(text: str) -> Damage:
        def apply(path: Path) -> None:
            path.write_text(text, encoding="utf-8", errors="surrogatepass")

        return Damage(file, f"the template {text!r}", apply)

    return st.sampled_from(_TEMPLATES).map(make) | WORDS.map(make)
