"""Perplexities and agreement of any model's logits, against slow and obvious ways to find them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from qplan.errors import InputError, MeasurementError
from qplan.jobs.options import BenchOptions
from qplan.verify.folder import nll_of, top_agreement, windows

DRAWN = np.random.default_rng(0)


def test_likelihoods_are_those_of_torch() -> None:
    logits = DRAWN.normal(0, 9, (150, 37)).astype(np.float32)
    ids = DRAWN.integers(0, 37, 150)
    expected = torch.nn.functional.cross_entropy(
        torch.from_numpy(logits[:-1]).double(), torch.from_numpy(ids[1:]), reduction="none"
    )
    assert nll_of(logits, ids) == pytest.approx(expected.numpy(), rel=1e-12)


def test_logits_that_are_no_numbers_are_refused() -> None:
    logits = np.zeros((3, 5), np.float32)
    logits[1, 2] = np.nan
    with pytest.raises(MeasurementError, match="not finite"):
        nll_of(logits, np.array([0, 1, 2]))


@pytest.mark.parametrize("vocabulary", [3, 5, 40])
def test_agreement_of_the_likeliest_tokens(vocabulary: int) -> None:
    first, second = DRAWN.normal(size=(2, 12, vocabulary)).astype(np.float32)
    count = min(5, vocabulary)
    expected = [
        len(set(np.argsort(a)[-count:]) & set(np.argsort(b)[-count:])) / count
        for a, b in zip(first, second, strict=True)
    ]
    assert top_agreement(first, second).tolist() == expected
    assert top_agreement(first, first).tolist() == [1.0] * 12


def test_a_text_is_cut_into_sequences_of_one_length() -> None:
    ids = np.arange(100)
    assert windows(ids, 70, 32).tolist() == [ids[:32].tolist(), ids[32:64].tolist()]
    assert windows(ids, 20, 32).shape == (1, 20)
    assert windows(ids[:5], 70, 32).shape == (1, 5)
    with pytest.raises(InputError, match="at least 2 are needed"):
        windows(ids[:1], 70, 32)


@pytest.mark.parametrize(("given", "told"), [({"tokens": 1}, "--tokens 1"), ({"seq_len": 0}, "--seq-len 0")])
def test_counts_that_measure_nothing_are_refused(given: dict[str, int], told: str) -> None:
    with pytest.raises(InputError, match=told):
        BenchOptions(folder=Path("x"), **given)  # type: ignore[arg-type]
