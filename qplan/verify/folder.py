"""What is measured of an MNN model folder, whoever made it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qplan.errors import InputError, MeasurementError

TOP = 5
"""Most likely tokens whose agreement is told besides that of the first."""

PPL_EVAL_TOKENS, PPL_EVAL_STRIDE = 768, 512
"""Of MNN's ``ppl_eval``: tokens of a window, and from the beginning of one to the next."""

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
class Windows:
    """A text in sequences, each of which the model sees by itself, and what is judged of each."""

    rows: NDArray[np.int64]
    """Token ids ``[rows, seq_len]``."""
    tokens: int
    """Of the text."""
    overlap: int = 0
    """Tokens at the beginning of every row but the first that the row before ends with: they are not judged again."""

    def judged(self, row: int) -> slice:
        """Positions of a row whose logits are judged."""
        return slice(self.overlap if row else 0, None)

    def nll(self, logits: NDArray[np.float32], row: int) -> NDArray[np.float64]:
        """Negative log-likelihoods of a row's tokens, in nats: of those that no row before had.

        Raises:
            MeasurementError: logits that are not finite.
        """
        return nll_of(logits, self.rows[row])[max(0, self.overlap - 1) if row else 0 :]


def perplexity_of(nll: Sequence[NDArray[np.float64]]) -> float:
    """Of the negative log-likelihoods of rows: each row counts alike, as for ``ppl_eval``."""
    return float(np.exp(np.mean([row.mean() for row in nll])))


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
    windows: str
    """``rows`` that do not overlap, or those of MNN's ``ppl_eval``."""
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


def windows(ids: NDArray[np.int64], tokens: int, seq_len: int) -> Windows:
    """The beginning of a text as sequences that do not overlap, all of one length.

    Raises:
        InputError: the text has not two tokens.
    """
    ids = _beginning(ids, tokens)
    length = min(seq_len, len(ids))
    rows = ids[: len(ids) // length * length].reshape(-1, length)
    return Windows(rows, rows.size)


def ppl_eval_windows(ids: NDArray[np.int64], tokens: int, settings: Mapping[str, object]) -> Windows:
    """The beginning of a text in the windows of MNN's ``ppl_eval``: each token with 256 before it at least.

    The last tokens of the text are left out where they do not fill a window, which that program takes as it is.

    Args:
        ids: the text.
        tokens: at most so many of it.
        settings: the folder's; ``chunk_limits`` and ``chunk`` change the windows.

    Raises:
        InputError: the text has not two tokens, or settings of windows that are none.
    """
    ids = _beginning(ids, tokens)
    length, stride = _ppl_eval_lengths(settings)
    if len(ids) <= length:
        return Windows(ids[None], len(ids))
    count = 1 + (len(ids) - length) // stride
    rows = np.stack([ids[stride * row : stride * row + length] for row in range(count)])
    return Windows(rows, stride * (count - 1) + length, length - stride)


def _ppl_eval_lengths(settings: Mapping[str, object]) -> tuple[int, int]:
    limits = settings.get("chunk_limits")
    chunk = limits[0] if isinstance(limits, Sequence) and limits else settings.get("chunk")
    if chunk is None:
        return PPL_EVAL_TOKENS, PPL_EVAL_STRIDE
    if isinstance(chunk, bool) or not isinstance(chunk, int) or chunk < 3:  # noqa: PLR2004 - the stride is 2 of 3
        msg = f"chunk {chunk!r} in the folder's config.json: must be a whole number from 3 for windows of ppl_eval"
        raise InputError(msg)
    return chunk, chunk // 3 * 2


def _beginning(ids: NDArray[np.int64], tokens: int) -> NDArray[np.int64]:
    ids = ids[:tokens]
    if len(ids) < 2:  # noqa: PLR2004 - one to predict another from
        msg = f"the text has {len(ids)} tokens, and at least 2 are needed; give a longer --text"
        raise InputError(msg)
    return ids
