"""Chat messages as text, by the template of the model's tokenizer; nothing of them becomes Python's own notation."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from qplan.errors import InputError

_INSTEAD = "give plain text instead, or records that it takes"


class RefusedRecordError(InputError):
    """A record that the template refuses: others of the same text may be fine."""


def render(place: str, messages: Any, tools: Any, tokenizer: Any) -> str:  # noqa: ANN401
    """Render a conversation.

    Args:
        place: where it stands, for messages.
        messages: objects with a role, and with content or tool calls.
        tools: tools that the model is told of; None for none.
        tokenizer: a Hugging Face tokenizer.

    Raises:
        RefusedRecordError: there are no messages, or the template refuses them.
        InputError: no template, one that does not parse, or messages that no template could take.
    """
    template = getattr(tokenizer, "chat_template", None)
    if not template:
        msg = f"{place} holds chat messages and the model's tokenizer has no chat template; give plain text instead"
        raise InputError(msg)
    if not isinstance(messages, list) or not all(_is_message(message) for message in messages):
        msg = f"{place}: 'messages' must be a list of objects with role and content"
        raise InputError(msg)
    if not messages:
        msg = f"{place}: 'messages' is empty"
        raise RefusedRecordError(msg)
    given = [_message(place, number, message) for number, message in enumerate(messages, 1)]
    if any("tool_calls" in message for message in given) and "tool_calls" not in str(template):
        msg = f"{place} holds tool calls, and the model's chat template does not write any; {_INSTEAD}"
        raise InputError(msg)
    return _rendered(place, given, tools if isinstance(tools, list) and tools else None, tokenizer)


def _rendered(place: str, messages: list[dict[str, Any]], tools: list[Any] | None, tokenizer: Any) -> str:  # noqa: ANN401
    from jinja2 import TemplateSyntaxError  # noqa: PLC0415 - comes with transformers, which loads it for templates alone

    problem: Exception | None = None
    # some templates write arguments as JSON themselves, others want to be given the JSON
    for form in (_with_objects(messages), messages):
        try:
            return str(tokenizer.apply_chat_template(form, tools=tools, tokenize=False))
        except TemplateSyntaxError as error:
            msg = f"the model's chat template does not parse: {error}; mend it, or give plain text instead"
            raise InputError(msg) from None
        except Exception as error:  # noqa: BLE001 - a template is a program: it raises what it likes
            problem = problem or error
    first = (str(problem).strip().splitlines() or [type(problem).__name__])[0]
    msg = f"{place}: the model's chat template refuses the messages: {first:.200}; {_INSTEAD}"
    raise RefusedRecordError(msg)


def _is_message(message: object) -> bool:
    return (
        isinstance(message, Mapping)
        and isinstance(message.get("role"), str)
        and ("content" in message or bool(message.get("tool_calls")))
    )


def _message(place: str, number: int, message: Mapping[str, Any]) -> dict[str, Any]:
    """A message with its content as text; what is null is left out, as columns of Parquet files often are."""
    kept = {key: value for key, value in message.items() if value is not None and key != "content"}
    if not kept.get("tool_calls"):
        kept.pop("tool_calls", None)
    content = message.get("content")
    if isinstance(content, list):
        content = "".join(_part(place, number, part) for part in content)
    elif content is None and "tool_calls" in kept:
        content = ""
    if not isinstance(content, str):
        found = "is null" if content is None else f"holds a {type(content).__name__}"
        msg = f"{place}: content of message {number} {found}, expected text or a list of text parts"
        raise InputError(msg)
    return {**kept, "content": content}


def _part(place: str, number: int, part: object) -> str:
    if isinstance(part, str):
        return part
    text = part.get("text") if isinstance(part, Mapping) and part.get("type", "text") == "text" else None
    if not isinstance(text, str):
        kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
        msg = f"{place}: message {number} has a part of type {kind!r:.80}; qplan reads parts of type 'text'"
        raise InputError(msg)
    return text


def _with_objects(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Tool calls with their arguments as objects, where they are objects written as JSON."""
    return [
        {**message, "tool_calls": [_call(call) for call in message["tool_calls"]]}
        if isinstance(message.get("tool_calls"), list)
        else message
        for message in messages
    ]


def _call(call: Any) -> Any:  # noqa: ANN401 - whatever the record holds
    if not isinstance(call, Mapping) or not isinstance(call.get("function"), Mapping):
        return call
    arguments = call["function"].get("arguments")
    try:
        found = json.loads(arguments) if isinstance(arguments, str) else None
    except (ValueError, RecursionError):
        found = None
    return {**call, "function": {**call["function"], "arguments": found}} if isinstance(found, dict) else call
