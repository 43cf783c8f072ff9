"""Chat messages: as the template means them, or refused with what is the matter."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from qplan.calibration import Text, load_text
from qplan.errors import InputError
from qplan.model.load import LoadedModel

PLAIN = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}"
NO_SYSTEM = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}" + PLAIN
)
TOOLS = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% for c in m.tool_calls or [] %}"
    "[{{ c.function.name }} {{ c.function.arguments | tojson }}]{% endfor %}{% endfor %}"
)
ARGUMENTS_AS_TEXT = TOOLS.replace("c.function.arguments | tojson", "'' + c.function.arguments")

USER = {"role": "user", "content": "add"}
CALL = {"type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}


@pytest.fixture
def load(tmp_path: Path, qwen2: LoadedModel) -> Any:
    def of(template: str, *conversations: Any) -> Text:
        tokenizer = copy.deepcopy(qwen2.tokenizer)
        tokenizer.chat_template = template
        path = tmp_path / "chat.jsonl"
        path.write_text("\n".join(json.dumps({"messages": messages}) for messages in conversations), encoding="utf-8")
        return load_text(str(path), tokenizer)

    return of


def test_records_that_the_template_refuses_are_left_out_and_told(load: Any) -> None:
    text = load(NO_SYSTEM, [{"role": "system", "content": "be brief"}, USER], [USER], [])
    assert text.documents == ("<user>add",)
    (told,) = text.notes
    assert (told.code, told.values["refused"], told.values["used"]) == ("records-refused", 2, 1)
    assert "System role not supported" in str(told)


def test_all_refused_is_an_error(load: Any) -> None:
    system = [{"role": "system", "content": "be brief"}, USER]
    with pytest.raises(InputError, match=r"none of the 2 records .* line 1: .* System role not supported"):
        load(NO_SYSTEM, system, system)
    with pytest.raises(InputError, match=r"none of the 1 records .* 'messages' is empty"):
        load(PLAIN, [])


@pytest.mark.parametrize(
    "template", ["{{ 1 / 0 }}", "{{ messages[0].a.b }}", "{{ messages[0].content + 3 }}", "{{ ''.__class__.__mro__ }}"]
)
def test_whatever_a_template_raises_is_a_sentence(load: Any, template: str) -> None:
    with pytest.raises(InputError, match="chat template refuses the messages"):
        load(template, [USER])


def test_a_template_that_does_not_parse(load: Any) -> None:
    with pytest.raises(InputError, match=r"the model's chat template does not parse: .*; mend it"):
        load("{% for m in %}", [USER])


def test_parts_of_text_are_joined_and_others_refused(load: Any) -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b", "image": None}, "c"]
    assert load(PLAIN, [{"role": "user", "content": parts}]).documents == ("<user>abc",)
    with pytest.raises(InputError, match="message 1 has a part of type 'image_url'"):
        load(PLAIN, [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}])


@pytest.mark.parametrize(("content", "found"), [(None, "is null"), (3, "holds a int"), ({}, "holds a dict")])
def test_content_that_is_no_text(load: Any, content: object, found: str) -> None:
    with pytest.raises(InputError, match=f"line 1: content of message 1 {found}, expected text"):
        load(PLAIN, [{"role": "user", "content": content}])


def test_tool_calls_as_the_template_means_them(load: Any) -> None:
    called = [USER, {"role": "assistant", "content": None, "tool_calls": [CALL]}, {"role": "tool", "content": "3"}]
    with pytest.raises(InputError, match="holds tool calls, and the model's chat template does not write any"):
        load(PLAIN, called)
    assert load(TOOLS, called).documents == ('<user>add<assistant>[add {"a": 1}]<tool>3',)
    assert load(ARGUMENTS_AS_TEXT, called).documents == ('<user>add<assistant>[add {"a": 1}]<tool>3',)


def test_columns_of_nulls_are_left_out(load: Any) -> None:
    assert load(PLAIN, [USER | {"tool_calls": None, "name": None}]).documents == ("<user>add",)
