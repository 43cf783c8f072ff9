"""What a built model writes, beside the Hugging Face model and a uniform export: greedy continuations of text."""

from __future__ import annotations

from dataclasses import dataclass

FP32 = "fp32"
"""Name of the Hugging Face model's texts."""


@dataclass(frozen=True)
class Sample:
    """One prompt and what every model makes of it."""

    prompt: str
    """The beginning of a held-out sequence."""
    texts: dict[str, str]
    """Continuations by model: ``fp32``, the uniform export, ``plan``."""


@dataclass(frozen=True, kw_only=True)
class Samples:
    """Continuations of some beginnings of held-out sequences, those that differ most."""

    prompts: int
    """How many beginnings were continued."""
    prompt_tokens: int
    new_tokens: int
    """Tokens of a continuation, unless the text ends before."""
    same: dict[str, int]
    """By model, how many of the continuations are those of FP32 to the last token."""
    shown: tuple[Sample, ...]
    """Those in which the models depart from FP32 earliest, taken together."""
