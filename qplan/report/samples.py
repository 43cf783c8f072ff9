"""Texts of the models side by side, with the place where each departs from FP32's."""

from __future__ import annotations

from dataclasses import dataclass

from qplan.report.words import ENGLISH, Words
from qplan.run.samples import FP32, Samples


@dataclass(frozen=True)
class SampleText:
    """One model's continuation."""

    label: str
    is_plan: bool
    like: str
    """What it begins with as FP32 does."""
    unlike: str
    """The rest; empty where the whole text is FP32's."""


@dataclass(frozen=True)
class SampleRow:
    """One prompt with a text of every model, FP32's first."""

    prompt: str
    texts: tuple[SampleText, ...]


def sample_rows(samples: Samples, words: Words = ENGLISH) -> tuple[SampleRow, ...]:
    """The samples that are shown."""
    rows = []
    for sample in samples.shown:
        reference = sample.texts[FP32]
        texts = []
        for name, text in sample.texts.items():
            alike = _in_common(reference, text)
            label = {FP32: "FP32", "plan": words("Plan")}.get(name, words("uniform {name}", name=name.upper()))
            texts.append(SampleText(label, name == "plan", text[:alike], text[alike:]))
        rows.append(SampleRow(sample.prompt, tuple(texts)))
    return tuple(rows)


def sample_counts(samples: Samples, words: Words = ENGLISH) -> str:
    """How many of all continuations are FP32's, in a sentence."""
    plan = samples.same.get("plan", 0)
    other = next((name for name in samples.same if name != "plan"), "")
    return words(
        "Of {prompts} beginnings of held-out text, continued by {tokens} tokens each, the plan writes what FP32 writes "
        "{plan} times, uniform {other} {uniform} times.",
        prompts=samples.prompts,
        tokens=samples.new_tokens,
        plan=plan,
        other=other.upper(),
        uniform=samples.same.get(other, 0),
    )


def _in_common(one: str, other: str) -> int:
    differs = (place for place, (a, b) in enumerate(zip(one, other, strict=False)) if a != b)
    return next(differs, min(len(one), len(other)))
