"""A tokenizer with tokens that its model lacks, and chat templates that do not work, are found early."""

from __future__ import annotations

import pytest
from tokenizers.processors import TemplateProcessing

from qplan.calibration import check_chat_template, check_ids, start_of_text
from qplan.errors import InputError
from qplan.notes import note
from tests.support.tiny_models import CHAT_TEMPLATE, VOCABULARY, make_tokenizer


def test_tokens_beyond_the_embedding_are_named_even_if_no_text_holds_them() -> None:
    tokenizer = make_tokenizer()
    size = len(tokenizer)
    check_ids(tokenizer, size)
    tokenizer.add_tokens(["<tool_call>", "</tool_call>"])
    check_ids(tokenizer, size + 2)
    with pytest.raises(InputError, match=rf"vocabulary of {size}: '<tool_call>' \({size}\), '</tool_call>'") as refused:
        check_ids(tokenizer, size)
    assert f"resize_token_embeddings({size + 2})" in str(refused.value)


def test_a_tokenizer_of_another_model_is_not_listed_whole() -> None:
    with pytest.raises(InputError, match=r"\d+ tokens are beyond .* and \d+ more; ") as refused:
        check_ids(make_tokenizer(), 10)
    assert len(str(refused.value)) < 500


def test_a_vocabulary_with_rows_to_spare_is_fine() -> None:
    check_ids(make_tokenizer(), 10 * VOCABULARY)


@pytest.mark.parametrize("template", [None, "", CHAT_TEMPLATE])
def test_a_working_template_and_none_say_nothing(template: str | None) -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = template
    assert check_chat_template(tokenizer) == ()


def test_a_template_that_does_not_parse_is_refused_with_its_line() -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}\n{{ m['content'] "
    with pytest.raises(InputError, match=r"does not parse, line 2: .* tokenizer_config\.json"):
        check_chat_template(tokenizer)


@pytest.mark.parametrize("template", [5, ["x"], {"default": None}])
def test_a_template_that_is_no_text_is_refused(template: object) -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = template
    with pytest.raises(InputError, match=r"chat template is .*; expected a text"):
        check_chat_template(tokenizer)


@pytest.mark.parametrize(
    ("single", "start"), [("$A", []), ("<eos> $A", [0]), ("$A <eos>", []), ("<eos> <eos> $A <eos>", [0, 0])]
)
def test_a_text_starts_with_the_special_tokens_before_its_own(single: str, start: list[int]) -> None:
    tokenizer = make_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=single, special_tokens=[("<eos>", 0)])
    assert start_of_text(tokenizer) == start


@pytest.mark.parametrize(
    ("template", "error"),
    [
        ("{{ raise_exception('no system message') }}", "TemplateError: no system message"),
        ("{{ 1 // 0 }}", "ZeroDivisionError: "),
        ("{{ messages[0].content.parts.first }}", "UndefinedError: "),
    ],
)
def test_a_template_that_raises_is_told(template: str, error: str) -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = template
    (told,) = check_chat_template(tokenizer)
    assert told.code == note("chat-template-raises", error="").code
    assert error in str(told)


def test_templates_without_a_default_are_told() -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = {"tool_use": CHAT_TEMPLATE}
    assert "ValueError" in str(check_chat_template(tokenizer)[0])
