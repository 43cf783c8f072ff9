"""One loss of one tensor in one format, and what several batches of it say together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from qplan.settings import Memory

Source = Literal["measured", "gradient"]
"""How a loss is known: by running the model with the format, or by the Fisher estimate from gradients."""

FORM_ERROR = 0.12
"""Relative standard error of a gradient estimate beyond that of its sampling: what the row form and the second order
leave out. Standard deviation of log(gradient / measured) over tensors, ``reports/sensitivity/``."""


@dataclass(frozen=True)
class Measurement:
    """One tensor in one format, everything else FP32, on one calibration batch."""

    tensor: str
    """Hugging Face name."""
    format: str
    """Format's name as resolved for this tensor."""
    memory: Memory
    """MNN's ``memory`` setting whose arithmetic was emulated: ``low`` (int8 activations) or ``normal``."""
    batch: int
    tokens: int
    """Tokens whose next-token distribution was compared."""
    kl_nats: float
    """Mean over tokens of KL(FP32 || variant) at the logits."""
    kl_p99_nats: float | None
    """99th percentile over tokens of the same; None where only gradients are known."""
    top1: float | None
    """Fraction of tokens whose most likely next token is unchanged; None where only gradients are known."""
    nll_nats: float | None
    """Mean negative log-likelihood of the text under the variant, exp is the perplexity; None as above."""
    sqnr_db: float
    """Signal to quantization noise of the tensor's own output; inf where nothing changed."""
    cosine: float | None = None
    """Of the angle between the tensor's own output and the reference's, as vectors over all tokens; None in tables of
    before."""
    source: Source = "measured"
    stderr_nats: float | None = None
    """Standard error of `kl_nats` from the spread over the batch's sequences; None where it is not known."""


@dataclass(frozen=True)
class Loss:
    """A format's loss over all batches."""

    kl_nats: float
    """Mean over all tokens."""
    stderr_nats: float
    """Standard error of the mean, from the spread over batches (measured) or sequences (gradient, with `FORM_ERROR`);
    0 where one batch is all there is."""
    kl_p99_nats: float | None
    """Token-weighted mean of the batches' 99th percentiles; None where only gradients are known."""
    top1: float | None
    nll_nats: float | None
    sqnr_db: float
    """Mean over batches in dB."""
    cosine: float | None
    """Token-weighted mean of the batches' cosines; None in tables of before."""
    source: Source = "measured"


def summarize(measurements: Sequence[Measurement]) -> Loss:
    """Combine the batches of one tensor and format, weighted by tokens."""
    tokens = sum(m.tokens for m in measurements)
    mean = sum(m.tokens * m.kl_nats for m in measurements) / tokens
    sources = {m.source for m in measurements}
    source: Source = "measured" if sources == {"measured"} else "gradient"
    variance = _sequence_variance(measurements, tokens)
    if variance is None:
        variance = _batch_variance(measurements, mean, tokens)
    if source == "gradient":
        variance += (FORM_ERROR * mean) ** 2
    return Loss(
        mean,
        math.sqrt(variance),
        _mean([(m.tokens, m.kl_p99_nats) for m in measurements]),
        _mean([(m.tokens, m.top1) for m in measurements]),
        _mean([(m.tokens, m.nll_nats) for m in measurements]),
        sum(m.sqnr_db for m in measurements) / len(measurements),
        _mean([(m.tokens, m.cosine) for m in measurements]),
        source,
    )


def _mean(values: Sequence[tuple[int, float | None]]) -> float | None:
    """Mean of values weighted by tokens, None if one is not known."""
    known = [(tokens, value) for tokens, value in values if value is not None]
    if len(known) < len(values):
        return None
    return sum(tokens * value for tokens, value in known) / sum(tokens for tokens, _ in known)


def _sequence_variance(measurements: Sequence[Measurement], tokens: int) -> float | None:
    """Variance of the mean over batches whose own variances are known."""
    known = [(m.tokens, m.stderr_nats) for m in measurements if m.stderr_nats is not None]
    if len(known) < len(measurements):
        return None
    return sum((weight / tokens * stderr) ** 2 for weight, stderr in known)


def _batch_variance(measurements: Sequence[Measurement], mean: float, tokens: int) -> float:
    """Variance of the mean from the spread over batches; 0 with one."""
    spread = sum((m.tokens / tokens) ** 2 * (m.kl_nats - mean) ** 2 for m in measurements)
    count = len(measurements)
    return spread * count / (count - 1) if count > 1 else 0.0
