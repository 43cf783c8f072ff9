"""Whether the built model's tokenizer makes the tokens that Hugging Face's makes, on texts of many kinds."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qplan.calibration import start_of_text
from qplan.errors import InputError, ToolError
from qplan.mnn.engine.engine import Engine
from qplan.mnn.engine.session import EngineSession
from qplan.notes import note
from qplan.run.verification import Check

Encoder = EngineSession | Engine
"""A model whose tokenizer is asked."""


OTHER_REFERENCE = "give the model that the folder was exported from, or leave --reference out"
"""What to do about a reference of another model."""


@dataclass(frozen=True)
class Probe:
    """A text to encode with both."""

    name: str
    text: str
    ordinary: bool = False
    """Whether people write such texts every day: a difference there fails the check, others are only told."""


PROBES = (
    Probe("english", "The quick brown fox jumps over the lazy dog. It's 5 o'clock; don't wait!", ordinary=True),
    Probe("digits", "In 2024, 1,234,567.89 of 42 items (3.5 %) cost $99.", ordinary=True),
    Probe("code", "def f(x):\n    if x >= 2:\n\t\treturn {'a': x ** 2}  # square\n\n\n", ordinary=True),
    Probe("spaces", "one  two   three\n\n four \n", ordinary=True),
    Probe("chinese", "你好，世界！今天的天气怎么样？我们去公园散步吧。", ordinary=True),  # noqa: RUF001
    Probe("japanese", "こんにちは、世界。カタカナと漢字。", ordinary=True),
    Probe("cyrillic", "Съешь же ещё этих мягких французских булок.", ordinary=True),
    Probe("accents", "Café, naïve, Übergröße, señor, façade.", ordinary=True),
    Probe("emoji", "Well done 🎉 👍 🚀", ordinary=True),
    Probe("arabic", "مرحبا بالعالم، كيف حالك؟"),
    Probe("hindi", "नमस्ते दुनिया, आप कैसे हैं?"),
    Probe("combining", "Cafe\u0301 nai\u0308ve A\u030a \u1112\u1161\u11ab"),
    Probe("compatibility", "\ufb01ne \u2460 \uff21\uff22 \u212b"),
    Probe("emoji-family", "\U0001f468\u200d\U0001f469\u200d\U0001f467 \U0001f44b\U0001f3fd \U0001f1e9\U0001f1ea"),
    Probe("zero-width", "zero\u200bwidth\u200djoiner\u200cnon\u2060word"),
    Probe("byte-order-mark", "\ufeffafter the mark"),
    Probe("control", "bell\x07 escape\x1b[0m delete\x7f form\x0cfeed"),
    Probe("unusual-spaces", "non\u00a0breaking\u2003em\u3000wide\u2028line\r\nend"),
    Probe("private", "\ue000 \U000f0000 \ufffd"),
)

_CHAT = ({"role": "user", "content": "Hello, who are you?"},)


def same_tokens(engine: Encoder, tokenizer: Any) -> Check:  # noqa: ANN401 - a Hugging Face tokenizer
    """Encode every probe on the engine and in Python; what differs is listed, and ordinary text must not.

    Nor must anything stand before every text but the special tokens that Hugging Face's puts there.

    Args:
        engine: runs the built model.
        tokenizer: the model's, from Hugging Face.
    """
    probes = (*PROBES, *_own(tokenizer))
    start = _start(engine, tokenizer)
    different = [probe for probe in probes if not _same(engine, tokenizer, probe.text, start)]
    kinds = [probe.name for probe in different]
    wrong_start = start not in ([], start_of_text(tokenizer))
    if wrong_start:
        kinds.append("start-of-text")
    count = len(probes) + 1
    told = (
        note("tokens-differ", same=count - len(kinds), count=count, kinds=kinds)
        if kinds
        else note("tokens-same", count=count)
    )
    failed = wrong_start or any(probe.ordinary for probe in different)
    return Check(note("same-tokens"), not failed, told)


def require_same_tokens(engine: Encoder, tokenizer: Any, folder: Path, reference: str, compared: str) -> None:  # noqa: ANN401
    """Refuse a reference whose tokens mean something else than a folder's.

    Args:
        engine: runs the folder.
        tokenizer: the reference's.
        folder: what is measured.
        reference: what it is compared with.
        compared: what of both, in the plural.

    Raises:
        InputError: another tokenizer.
    """
    check = same_tokens(engine, tokenizer)
    if not check.passed:
        msg = (
            f"the tokenizers of {folder} and {reference} differ on everyday text ({check.detail}), so that their "
            f"{compared} do not compare; {OTHER_REFERENCE}"
        )
        raise InputError(msg)


def _start(engine: Encoder, tokenizer: Any) -> list[int]:  # noqa: ANN401
    """Tokens that the engine puts before every text: the exporter writes them into the tokenizer's file."""
    plain = _tokens(tokenizer, PROBES[0].text, special=False)
    found = engine.encode(PROBES[0].text)
    return found[: -len(plain)] if plain and found[-len(plain) :] == plain else []


def _tokens(tokenizer: Any, text: str, *, special: bool) -> list[int]:  # noqa: ANN401
    return [int(token) for token in tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"]]


def _own(tokenizer: Any) -> tuple[Probe, ...]:  # noqa: ANN401
    """Texts with the tokenizer's special tokens, and what its chat template makes of a message."""
    found = [Probe("special-tokens", f"a{token} b", ordinary=True) for token in tokenizer.all_special_tokens[:8]]
    if getattr(tokenizer, "chat_template", None):
        try:
            text = tokenizer.apply_chat_template(list(_CHAT), tokenize=False, add_generation_prompt=True)
        except Exception:  # noqa: BLE001 - told by the analysis: a template may raise anything
            return tuple(found)
        found.append(Probe("chat", str(text), ordinary=True))
    return tuple(probe for probe in found if probe.text)


def _same(engine: Encoder, tokenizer: Any, text: str, start: list[int]) -> bool:  # noqa: ANN401
    """Whether both make the same tokens, after what the engine begins every text with."""
    plain, special = (_tokens(tokenizer, text, special=special) for special in (False, True))
    try:
        return engine.encode(text) in (plain, special, start + plain)
    except ToolError:
        if not isinstance(engine, Engine) and not engine.alive:  # the other starts itself again
            engine.restart()
        return False
