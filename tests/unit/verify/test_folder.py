"""Perplexities and agreement of any model's logits, against slow and obvious ways to find them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from qplan.errors import InputError, MeasurementError
from qplan.jobs.options import BenchOptions
from qplan.verify.folder import nll_of, perplexity_of, ppl_eval_windows, top_agreement, windows

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
    assert windows(ids, 70, 32).rows.tolist() == [ids[:32].tolist(), ids[32:64].tolist()]
    assert windows(ids, 70, 32).tokens == 64
    assert windows(ids, 20, 32).rows.shape == (1, 20)
    assert windows(ids[:5], 70, 32).rows.shape == (1, 5)
    with pytest.raises(InputError, match="at least 2 are needed"):
        windows(ids[:1], 70, 32)


def ppl_eval_rows(tokens: int, context: int, stride: int) -> list[tuple[int, int, int]]:
    """Begin, end and first target of MNN's ppl_eval, window by window, after its source of August 2026."""
    found, before = [], 0
    for begin in range(0, tokens, stride):
        end = min(begin + context, tokens)
        new = end - before + (1 if before else 0)
        found.append((begin, end, end - new + 1))
        before = end
        if end == tokens:
            break
    return found


@pytest.mark.parametrize("settings", [{}, {"chunk": 96}, {"chunk": 7, "chunk_limits": [50, 9]}])
@pytest.mark.parametrize("tokens", [2, 40, 96, 768, 1279, 1280, 3000])
def test_the_windows_of_ppl_eval(tokens: int, settings: dict[str, object]) -> None:
    ids = np.random.default_rng(tokens).integers(0, 9, 5000)
    found = ppl_eval_windows(ids, tokens, settings)
    context, stride = {0: (768, 512), 1: (96, 64), 2: (50, 32)}[len(settings)]
    assert tokens - stride < found.tokens <= tokens
    logits = np.random.default_rng(0).normal(size=(5000, 9)).astype(np.float32)
    expected = ppl_eval_rows(found.tokens, context, stride)
    assert len(found.rows) == len(expected)
    for row, (begin, end, first) in enumerate(expected):
        assert found.rows[row].tolist() == ids[begin:end].tolist()
        whole = nll_of(logits[begin:end], ids[begin:end])
        assert found.nll(logits[begin:end], row).tolist() == whole[first - begin - 1 :].tolist()
    # every position is judged once
    judged = [np.arange(begin, end)[found.judged(row)] for row, (begin, end, _) in enumerate(expected)]
    assert np.concatenate(judged).tolist() == list(range(found.tokens))


def test_rows_count_alike_in_a_perplexity() -> None:
    assert perplexity_of([np.array([1.0, 3.0]), np.array([4.0])]) == pytest.approx(np.exp(3))


@pytest.mark.parametrize("chunk", [0, 2, "many", True, 1.5])
def test_windows_of_ppl_eval_that_are_none(chunk: object) -> None:
    with pytest.raises(InputError, match=r"chunk .* must be a whole number from 3"):
        ppl_eval_windows(np.arange(9), 9, {"chunk": chunk})


def test_ppl_eval_has_a_length_of_its_own() -> None:
    with pytest.raises(InputError, match="--seq-len 64: --windows ppl_eval has windows of its own"):
        BenchOptions(folder=Path("x"), windows="ppl_eval", seq_len=64)
    with pytest.raises(InputError, match="--windows 'all': must be one of rows, ppl_eval"):
        BenchOptions(folder=Path("x"), windows="all")  # type: ignore[arg-type]


@pytest.mark.parametrize(("given", "told"), [({"tokens": 1}, "--tokens 1"), ({"seq_len": 0}, "--seq-len 0")])
def test_counts_that_measure_nothing_are_refused(given: dict[str, int], told: str) -> None:
    with pytest.raises(InputError, match=told):
        BenchOptions(folder=Path("x"), **given)  # type: ignore[arg-type]
