"""How far a variant's next-token distributions are from the reference's. Pure functions on tensors.

All losses are in nats. Logits are float32; sums end in float64 on devices that have it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from qplan.errors import MeasurementError

_CHUNK_ELEMENTS = 1 << 20
"""Logits worked on at a time: about what a processor's cache holds, and a bound on memory."""


@dataclass(frozen=True)
class Reference:
    """The reference's logits of some sequences, with what every comparison needs of them."""

    logits: Tensor
    """float32 ``[tokens, vocabulary]``."""
    probabilities: Tensor
    """float32 ``[tokens, vocabulary]``: softmax of the logits."""
    log_norm: Tensor
    """float64 ``[tokens]``: log of the sum of exponentials of the logits."""
    top: Tensor
    """int64 ``[tokens]``: the most likely next token."""
    labels: Tensor
    """int64 ``[tokens]``: the token that does follow, -1 at the end of a sequence."""

    @property
    def nll(self) -> Tensor:
        """float64 ``[labelled tokens]`` on the CPU: negative log-likelihood of the tokens that follow."""
        return _label_nll(self.logits, self.log_norm, self.labels)


@dataclass(frozen=True)
class TokenStats:
    """A variant against the reference, token by token, on the CPU."""

    kl: Tensor
    """float64 ``[tokens]``: KL(reference || variant) in nats, never negative, exactly 0 for identical logits."""
    same_top: Tensor
    """bool ``[tokens]``: the most likely next token is unchanged."""
    nll: Tensor
    """float64 ``[labelled tokens]``: negative log-likelihood of the tokens that follow, in nats."""

    @property
    def tokens(self) -> int:
        """Number of compared distributions."""
        return len(self.kl)

    @property
    def kl_nats(self) -> float:
        """Mean KL per token."""
        return float(self.kl.mean())

    @property
    def kl_p99_nats(self) -> float:
        """99th percentile of the KL over tokens, interpolated linearly."""
        return float(torch.quantile(self.kl, 0.99))

    @property
    def top1(self) -> float:
        """Fraction of tokens whose most likely next token is unchanged."""
        return float(self.same_top.to(torch.float64).mean())

    @property
    def nll_nats(self) -> float:
        """Mean negative log-likelihood of the text; its exponential is the perplexity."""
        return float(self.nll.mean())


def join(parts: list[TokenStats]) -> TokenStats:
    """The tokens of several batches as one."""
    return TokenStats(
        torch.cat([part.kl for part in parts]),
        torch.cat([part.same_top for part in parts]),
        torch.cat([part.nll for part in parts]),
    )


def reference_of(logits: Tensor, tokens: Tensor) -> Reference:
    """Prepare a reference.

    Args:
        logits: ``[rows, seq_len, vocabulary]`` of the reference.
        tokens: int64 ``[rows, seq_len]``, the text itself.

    Raises:
        MeasurementError: logits that are not finite.
    """
    flat = logits.to(torch.float32).flatten(0, -2)
    if not torch.isfinite(flat).all():
        msg = "the reference's logits are not finite; the model overflows in float32 on this text"
        raise MeasurementError(msg)
    labels = functional.pad(tokens[..., 1:], (0, 1), value=-1).flatten().to(flat.device)
    norms = [torch.logsumexp(chunk.to(_wide(chunk)), -1) for chunk in flat.split(_rows(flat))]
    log_norm = torch.cat(norms)
    return Reference(flat, torch.softmax(flat, -1), log_norm, flat.argmax(-1), labels)


def compare(reference: Reference, logits: Tensor) -> TokenStats:
    """Compare a variant's logits ``[..., vocabulary]`` of the same tokens with the reference's.

    With ``u`` the variant's logits minus the reference's, ``m = sum(p u)`` and ``x = u - m``::

        KL(p || q) = log sum(p exp(x)) = log1p(sum(p (expm1(x) - x)))

    because ``sum(p x) = 0``. Every term is at least 0 and none cancels, so tiny losses keep their digits where the
    direct ``sum(p (log p - log q))`` drowns in rounding. The variant's normaliser follows:
    ``log Z_q = log Z_p + m + KL``.

    Raises:
        MeasurementError: logits that are not finite or of another shape.
    """
    flat = logits.to(torch.float32).flatten(0, -2)
    if flat.shape != reference.logits.shape:
        msg = f"logits of shape {tuple(flat.shape)} cannot be compared with {tuple(reference.logits.shape)}"
        raise MeasurementError(msg)
    kls, shifts = [], []
    rows = _rows(flat)
    for start in range(0, len(flat), rows):
        chunk = slice(start, start + rows)
        kl, shift = _kl_and_shift(reference.probabilities[chunk], reference.logits[chunk], flat[chunk])
        kls.append(kl)
        shifts.append(shift)
    kl, shift = torch.cat(kls), torch.cat(shifts)
    if not torch.isfinite(kl).all():
        msg = f"{int((~torch.isfinite(kl)).sum())} of {len(kl)} tokens have a loss that is not finite"
        raise MeasurementError(msg)
    nll = _label_nll(flat, reference.log_norm + shift + kl, reference.labels)
    return TokenStats(kl.cpu().to(torch.float64), (flat.argmax(-1) == reference.top).cpu(), nll)


def compare_logits(reference: Tensor, variant: Tensor, tokens: Tensor) -> TokenStats:
    """Compare two models' logits ``[rows, seq_len, vocabulary]`` on token ids ``[rows, seq_len]``."""
    return compare(reference_of(reference, tokens), variant)


def sqnr_db(reference: Tensor, actual: Tensor) -> float:
    """Signal to quantisation noise ``10 log10(sum(r^2) / sum((r - a)^2))`` in dB; inf if nothing changed."""
    noise = _square_sum(reference - actual)
    if noise == 0:
        return float("inf")
    signal = _square_sum(reference)
    if signal == 0:
        return float("-inf")
    return 10 * math.log10(signal / noise)


def cosine(reference: Tensor, actual: Tensor) -> float:
    """Cosine of the angle between two tensors seen as vectors; 1 if they point the same way."""
    left, right = reference.flatten().to(_wide(reference)), actual.flatten().to(_wide(actual))
    return float(functional.cosine_similarity(left, right, dim=0))


def _kl_and_shift(probabilities: Tensor, logits: Tensor, variant: Tensor) -> tuple[Tensor, Tensor]:
    difference = variant - logits
    shift = torch.linalg.vecdot(probabilities, difference)
    centred = difference.sub_(shift.unsqueeze(-1))
    terms = torch.expm1(centred).sub_(centred)
    # expm1(x) >= x; a vectorised expm1 may miss that by its last digit
    total = torch.linalg.vecdot(probabilities, terms).clamp(min=0)
    wide = _wide(total)
    return torch.log1p(total.to(wide)), shift.to(wide)


def _label_nll(logits: Tensor, log_norm: Tensor, labels: Tensor) -> Tensor:
    known = labels >= 0
    chosen = logits[known].gather(-1, labels[known].unsqueeze(-1)).squeeze(-1)
    return (log_norm[known] - chosen.to(log_norm.dtype)).cpu().to(torch.float64)


def _square_sum(values: Tensor) -> float:
    # not torch.dot: its last digits depend on how many threads it takes, and a resumed run may have others
    return math.fsum(float(p.square().sum(dtype=_wide(p))) for p in values.flatten().split(_CHUNK_ELEMENTS))


def _wide(values: Tensor) -> torch.dtype:
    # Apple's GPU has no float64
    return torch.float32 if values.device.type == "mps" else torch.float64


def _rows(logits: Tensor) -> int:
    return max(1, _CHUNK_ELEMENTS // logits.shape[-1])
