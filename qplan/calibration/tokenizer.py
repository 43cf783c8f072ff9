"""Whether a tokenizer belongs to its model, and whether its chat template works: found before anything is measured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jinja2 import TemplateSyntaxError

from qplan.calibration.bounded import check_ends
from qplan.errors import InputError
from qplan.notes import Note, few, note

_GREETING = ({"role": "user", "content": "Hello"},)
"""The plainest conversation: a template that cannot render it renders none."""

_WORD = "word"

_SHOWN_CHARACTERS = 200


def check_ids(tokenizer: Any, vocabulary: int) -> None:  # noqa: ANN401 - a Hugging Face tokenizer
    """Refuse a tokenizer that has tokens which the model has no row for, whether or not a text holds them.

    Raises:
        InputError: names the tokens.
    """
    beyond = sorted((index, token) for token, index in tokenizer.get_vocab().items() if index >= vocabulary)
    if not beyond:
        return
    named, others = few([f"{token!r:.80} ({index})" for index, token in beyond])
    more = f" and {others} more" if others else ""
    msg = (
        f"the tokenizer and the model do not belong together: {len(beyond)} tokens are beyond the model's vocabulary "
        f"of {vocabulary}: {', '.join(named)}{more}; the engine computes garbage from them. Take them out of the "
        f"tokenizer's files (where those name no unk_token or the like, {type(tokenizer).__name__} adds its own), or "
        f"add rows to the model: resize_token_embeddings({beyond[-1][0] + 1})"
    )
    raise InputError(msg)


def start_of_text(tokenizer: Any) -> list[int]:  # noqa: ANN401
    """Special tokens that a tokenizer puts before every text unless it is told not to; none for most."""
    plain, whole = (
        [int(token) for token in tokenizer(_WORD, add_special_tokens=special, verbose=False)["input_ids"]]
        for special in (False, True)
    )
    count = len(plain)
    places = (place for place in range(len(whole) - count + 1) if whole[place : place + count] == plain)
    return whole[: next(places, 0)]


def check_chat_template(tokenizer: Any) -> tuple[Note, ...]:  # noqa: ANN401
    """Try the chat template, which is built into the model, on a greeting.

    Returns:
        A note if it raises; none if it works or there is no template.

    Raises:
        InputError: the template is no text, does not parse, so that the engine would render chats without any, or does
            not end.
    """
    template = getattr(tokenizer, "chat_template", None)
    if not template:
        return ()
    texts = list(template.values()) if isinstance(template, Mapping) else [template]
    if not all(isinstance(text, str) for text in texts):
        msg = (
            f"the model's chat template is {template!r:.80}, of type {type(template).__name__}; expected a text, or a "
            "list of objects with name and template; mend chat_template in tokenizer_config.json, or take it out for a "
            "model that only continues text"
        )
        raise InputError(msg)
    for one in texts:
        check_ends(one, list(_GREETING))
    try:
        tokenizer.apply_chat_template(list(_GREETING), tokenize=False, add_generation_prompt=True)
    except TemplateSyntaxError as error:
        msg = (
            f"the model's chat template does not parse, line {error.lineno}: {error.message}; the built model would "
            "answer chats without a template. Mend it (chat_template.jinja, or chat_template in "
            "tokenizer_config.json), or take it out for a model that only continues text"
        )
        raise InputError(msg) from error
    except Exception as error:  # noqa: BLE001 - a template is a program of the folder's, and may raise anything
        return (note("chat-template-raises", error=f"{type(error).__name__}: {error}"[:_SHOWN_CHARACTERS]),)
    return ()
