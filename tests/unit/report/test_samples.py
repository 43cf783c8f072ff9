"""Samples on the page: what is marked, and how they are counted."""

from __future__ import annotations

from qplan.report.samples import sample_counts, sample_rows
from qplan.run.samples import Sample, Samples

SAMPLES = Samples(
    prompts=12,
    prompt_tokens=8,
    new_tokens=6,
    same={"int4": 3, "plan": 8},
    shown=(Sample("Once", {"fp32": " upon a time", "int4": " upon the", "plan": " upon a time"}),),
)


def test_marked_is_what_follows_the_first_difference() -> None:
    (row,) = sample_rows(SAMPLES)
    assert [(text.label, text.like, text.unlike) for text in row.texts] == [
        ("FP32", " upon a time", ""),
        ("uniform INT4", " upon ", "the"),
        ("Plan", " upon a time", ""),
    ]
    assert [text.is_plan for text in row.texts] == [False, False, True]


def test_counts_name_both_models() -> None:
    said = sample_counts(SAMPLES)
    assert "12 beginnings" in said
    assert "8 times, uniform INT4 3 times" in said
