"""What is told of another model's logits against the Hugging Face model's."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from qplan.sensitivity.kept_logits import KeptLogits, Logits
from qplan.verify.agreement import agreement_with
from qplan.verify.folder import Windows, perplexity_of

ROWS, LENGTH, VOCABULARY = 3, 20, 50
RANDOM = np.random.default_rng(0)
LOGITS = RANDOM.normal(size=(ROWS, LENGTH, VOCABULARY)).astype(np.float32)
JUDGED = Windows(RANDOM.integers(0, VOCABULARY, (ROWS, LENGTH)), ROWS * LENGTH)


def log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    values = logits.astype(np.float64)
    values -= values.max(-1, keepdims=True)
    found: NDArray[np.float64] = values - np.log(np.exp(values).sum(-1, keepdims=True))
    return found


def in_turn(logits: Logits) -> tuple[list[NDArray[np.int64]], Callable[[NDArray[np.int64]], Logits]]:
    seen: list[NDArray[np.int64]] = []

    def logits_of(row: NDArray[np.int64]) -> Logits:
        found: Logits = logits[len(seen)]
        seen.append(row)
        return found

    return seen, logits_of


def test_the_model_itself_agrees() -> None:
    told: list[tuple[int, int]] = []
    seen, logits_of = in_turn(LOGITS)
    nll, found = agreement_with(
        KeptLogits(JUDGED.rows, LOGITS),
        JUDGED,
        logits_of,
        lambda done, total: told.append((done, total)),
    )
    assert (found.kl_nats, found.kl_p999_nats, found.top1, found.top5) == (0, 0, 1, 1)
    assert perplexity_of(nll) == found.reference_perplexity
    assert told == [(1, 3), (2, 3), (3, 3)]
    assert np.array_equal(seen, JUDGED.rows)


def test_losses_are_those_of_the_formula() -> None:
    other = LOGITS + RANDOM.normal(scale=0.3, size=LOGITS.shape).astype(np.float32)
    _, logits_of = in_turn(other)
    nll, found = agreement_with(
        KeptLogits(JUDGED.rows, LOGITS),
        JUDGED,
        logits_of,
        lambda *_: None,
    )
    ours, theirs = log_softmax(LOGITS), log_softmax(other)
    kl = (np.exp(ours) * (ours - theirs)).sum(-1).ravel()
    assert found.kl_nats == pytest.approx(kl.mean(), rel=1e-5)
    assert found.kl_p99_nats == pytest.approx(np.quantile(kl, 0.99), rel=1e-4)
    assert found.kl_p999_nats == pytest.approx(np.quantile(kl, 0.999), rel=1e-4)
    assert found.top1 == pytest.approx((ours.argmax(-1) == theirs.argmax(-1)).mean())
    for own, row, logits in zip(nll, JUDGED.rows, theirs, strict=True):
        assert own == pytest.approx(-logits[np.arange(LENGTH - 1), row[1:]])
