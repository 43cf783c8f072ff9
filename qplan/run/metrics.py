"""The one list of what is measured about a tensor in a format.

A new metric is a field here, and its computation in `qplan.sensitivity.metrics`. The table's columns, the journal, the
combination of batches, the frames and what a plan can minimize follow. Nothing here is slow to import, since
shell completion reads the names at every key press.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from types import MappingProxyType

Batches = Sequence[tuple[int, float | None]]
"""Number of tokens and value of every batch."""


def by_tokens(values: Batches) -> float | None:
    """Mean weighted by tokens, None if a batch's value is not known."""
    known = [(tokens, value) for tokens, value in values if value is not None]
    if len(known) < len(values):
        return None
    return sum(tokens * value for tokens, value in known) / sum(tokens for tokens, _ in known)


def by_noise(values: Batches) -> float | None:
    """Decibels of the mean over batches of noise over signal, None if a batch's value is not known.

    Batches without noise are left out if others have some: no token reached the tensor there.
    """
    known = [value for _, value in values if value is not None]
    if len(known) < len(values):
        return None
    if -math.inf in known:
        return -math.inf
    noisy = [10 ** (-value / 10) for value in known if value < math.inf]
    return -10 * math.log10(sum(noisy) / len(noisy)) if noisy else math.inf


@dataclass(frozen=True)
class Measured:
    """What there is to know about a metric besides its name, which ends in its unit."""

    option: str
    """Its name where a plan minimizes it, as in ``--metric``."""
    loss: Callable[[float, float], float]
    """What a plan adds up, from its value and the reference's `nll_nats`; 0 where nothing is lost."""
    combined: Callable[[Batches], float | None] = by_tokens
    """The value of all batches together, from theirs."""
    gradients: bool = False
    """Whether it can be estimated from gradients."""
    possible: Callable[[float], bool] = math.isfinite
    """Whether a value is possible for it."""


def _is(measured: Measured) -> Mapping[str, Measured]:
    return MappingProxyType({"measured": measured})


@dataclass(frozen=True, kw_only=True)
class Metrics:
    """One tensor in one format against FP32; None where a metric is not known."""

    kl_nats: float = field(
        metadata=_is(Measured("kl", lambda kl, _: kl, gradients=True, possible=lambda kl: 0 <= kl < math.inf))
    )
    """Mean over tokens of KL(FP32 || variant) at the logits."""
    kl_p99_nats: float | None = field(default=None, metadata=_is(Measured("kl-p99", lambda kl, _: kl)))
    """99th percentile of that KL over tokens; None where only gradients are known."""
    top1: float | None = field(default=None, metadata=_is(Measured("top1", lambda same, _: 1 - same)))
    """Fraction of tokens whose most likely next token is unchanged; None where only gradients are known."""
    nll_nats: float | None = field(
        default=None, metadata=_is(Measured("perplexity", lambda nll, text: max(0.0, nll - text)))
    )
    """Mean negative log-likelihood of the text under the variant, exp is the perplexity; None as above."""
    sqnr_db: float = field(
        metadata=_is(
            Measured(
                "sqnr",
                lambda decibel, _: 10 ** (-decibel / 10),
                combined=by_noise,
                gradients=True,
                possible=lambda decibel: not math.isnan(decibel),
            )
        )
    )
    """Signal to quantization noise of the tensor's own output: ``10 log10(sum(y^2) / sum((q - y)^2))`` in dB.

    ``y`` is the output of its linear in FP32, bias included, on the calibration tokens, and ``q`` that of the same
    inputs with the weights as stored and, in integer formats under memory low, with int8 activations; the sums go over
    all tokens and output features. Batches count alike (`by_noise`). Where it was measured both sums are exact; where
    it is estimated, ``y`` is exact, and the noise is brought from some output features to all, without what errors of
    weights and of activations have in common. inf where nothing changed."""
    cosine: float | None = field(
        default=None, metadata=_is(Measured("cosine", lambda cosine, _: 1 - cosine, gradients=True))
    )
    """Cosine of the angle between the tensor's own output and the reference's, as vectors over all tokens; None in
    tables written by older versions."""


METRICS: Mapping[str, Measured] = MappingProxyType({f.name: f.metadata["measured"] for f in fields(Metrics)})
"""Every metric by its field's name."""


def values_of(record: Metrics) -> dict[str, float | None]:
    """A record's metrics by name."""
    return {name: getattr(record, name) for name in METRICS}
