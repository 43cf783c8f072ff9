"""What is measured of an MNN model folder, whoever made it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qplan.errors import InputError, MeasurementError

TOP = 5
"""Most likely tokens whose agreement is told besides that of the first."""

PROMPT_TOKENS, DECODE_TOKENS, REPEATS = 128, 32, 5
"""Timed: the prompt, tokens after it, and how often both at most."""

_ROWS = 64
"""Positions whose probabilities are added up at a time."""


@dataclass(frozen=True)
class Agreement:
    """How far a folder is from its reference, on the tokens of a text."""

    kl_nats: float
    """Mean KL(reference || folder) per token."""
    kl_p99_nats: float
    kl_p999_nats: float
    """The 99th and the 99.9th percentile over tokens."""
    top1: float
    """Fraction of tokens whose most likely next token is the reference's."""
    top5: float
    """Mean share of the reference's `TOP` most likely tokens that are among the folder's."""
    reference_perplexity: float


@dataclass(frozen=True)
class FolderMeasured:
    """A folder on the engine."""

    engine: str
    """Version of MNN."""
    memory: str
    precision: str
    threads: int
    file_bytes: int
    """Of graph, weights and embedding."""
    ram_bytes: int
    """Growth of the engine's resident memory by loading."""
    prompt_tokens: int
    prefill_tokens_per_s: float
    decode_tokens: int
    decode_tokens_per_s: float
    text: str
    tokens: int
    seq_len: int
    perplexity: float
    agreement: Agreement | None
    """None without a reference."""


def nll_of(logits: NDArray[np.float32], ids: NDArray[np.int64]) -> NDArray[np.float64]:
    """Negative log-likelihood of each token but the first, in nats, float64 ``[tokens - 1]``.

    Args:
        logits: float32 ``[tokens, vocabulary]``.
        ids: the tokens.

    Raises:
        MeasurementError: logits that are not finite.
    """
    found = []
    for start in range(0, len(ids) - 1, _ROWS):
        rows = logits[start : min(start + _ROWS, len(ids) - 1)].astype(np.float64)
        if not np.isfinite(rows).all():
            msg = f"logits after token {start} or soon after it are not finite; see 'qplan check --full'"
            raise MeasurementError(msg)
        largest = rows.max(-1)
        norm = largest + np.log(np.exp(rows - largest[:, None]).sum(-1))
        found.append(norm - rows[np.arange(len(rows)), ids[start + 1 : start + 1 + len(rows)]])
    return np.concatenate(found)


def top_agreement(reference: NDArray[np.float32], logits: NDArray[np.float32], count: int = TOP) -> NDArray[np.float64]:
    """Share of the reference's ``count`` most likely tokens that are among the other's, by position."""
    count = min(count, reference.shape[-1])
    first, second = (np.argpartition(rows, -count, -1)[:, -count:] for rows in (reference, logits))
    return np.array([len(np.intersect1d(a, b)) / count for a, b in zip(first, second, strict=True)])


def windows(ids: NDArray[np.int64], tokens: int, seq_len: int) -> NDArray[np.int64]:
    """The beginning of a text as sequences that do not overlap, ``[rows, seq_len]``; all of one length.

    Raises:
        InputError: the text has not two tokens.
    """
    ids = ids[:tokens]
    length = min(seq_len, len(ids))
    if length < 2:  # noqa: PLR2004 - one to predict another from
        msg = f"the text has {len(ids)} tokens, and at least 2 are needed; give a longer --text"
        raise InputError(msg)
    return ids[: len(ids) // length * length].reshape(-1, length)
