"""What counts as a difference between the built tokenizer and Hugging Face's, and which differences fail."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from tokenizers.processors import TemplateProcessing

from qplan.errors import ToolError
from qplan.verify.same_tokens import PROBES, same_tokens
from tests.support.tiny_models import make_tokenizer


class Echo:
    """Stands for the engine: the other tokenizer itself, but for texts that the test changes."""

    def __init__(self, tokenizer: Any, change: Callable[[str, list[int]], list[int]]) -> None:
        """Remember what to change."""
        self.tokenizer, self.change, self.alive, self.restarts = tokenizer, change, True, 0

    def encode(self, text: str) -> list[int]:
        """Token ids."""
        return self.change(text, self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def restart(self) -> None:
        """Count."""
        self.restarts, self.alive = self.restarts + 1, True


def text_of(name: str) -> str:
    return next(probe.text for probe in PROBES if probe.name == name)


def test_the_same_tokens_pass() -> None:
    tokenizer: Any = make_tokenizer()
    check = same_tokens(Echo(tokenizer, lambda _, ids: ids), tokenizer)  # type: ignore[arg-type]
    assert check.passed
    # the probes, one special token, the chat template and the start of all of them
    assert check.detail == f"the same on all of {len(PROBES) + 3} texts"


def test_a_start_that_only_the_engine_puts_before_texts_fails_and_is_told_once() -> None:
    tokenizer: Any = make_tokenizer()
    check = same_tokens(Echo(tokenizer, lambda _, ids: [1, 273, *ids]), tokenizer)  # type: ignore[arg-type]
    assert not check.passed
    assert check.detail.endswith("others: start-of-text")


def test_the_start_that_hugging_face_puts_there_passes() -> None:
    tokenizer: Any = make_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|end|> $A", special_tokens=[("<|end|>", 0)]
    )
    check = same_tokens(Echo(tokenizer, lambda _, ids: [0, *ids]), tokenizer)  # type: ignore[arg-type]
    assert (check.passed, check.detail) == (True, f"the same on all of {len(PROBES) + 3} texts")


@pytest.mark.parametrize(("name", "passed"), [("zero-width", True), ("byte-order-mark", True), ("chinese", False)])
def test_all_differences_are_listed_and_those_of_ordinary_text_fail(name: str, *, passed: bool) -> None:
    tokenizer: Any = make_tokenizer()
    wrong = Echo(tokenizer, lambda text, ids: ids[1:] if text == text_of(name) else ids)
    check = same_tokens(wrong, tokenizer)  # type: ignore[arg-type]
    assert check.passed == passed
    assert check.detail.endswith(f"others: {name}")


def test_a_chat_that_is_encoded_otherwise_fails() -> None:
    tokenizer: Any = make_tokenizer()
    wrong = Echo(tokenizer, lambda text, ids: [0] if text.startswith("<user>") else ids)
    check = same_tokens(wrong, tokenizer)  # type: ignore[arg-type]
    assert not check.passed
    assert check.detail.endswith("others: chat")


def test_an_engine_that_dies_of_a_text_is_started_again() -> None:
    tokenizer: Any = make_tokenizer()

    def die(text: str, ids: list[int]) -> list[int]:
        if text == text_of("control"):
            engine.alive = False
            msg = "the engine died"
            raise ToolError(msg)
        return ids

    engine = Echo(tokenizer, die)
    check = same_tokens(engine, tokenizer)  # type: ignore[arg-type]
    assert (check.passed, engine.restarts) == (True, 1)
    assert check.detail.endswith("others: control")
