"""How far a variant's next-token distributions are from the reference's. Pure functions on tensors.

All losses are in nats. Logits are float32; sums end in float64 on devices that have it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from qplan.errors import MeasurementError
from qplan.model.finite import all_finite
from qplan.run.metrics import METRICS

_CHUNK_ELEMENTS = 1 << 17
"""Logits processed at a time on a CPU: four arrays of this size fit its L2 cache."""

_DEVICE_CHUNK_ELEMENTS = 1 << 26
"""Logits processed at a time on other devices, where this only bounds memory."""

_SERIES_LIMIT = 1 / 32


@dataclass(frozen=True)
class Reference:
    """The reference's logits for some sequences, with what every comparison needs from them."""

    logits: Tensor
    """Logits, float32 ``[tokens, vocabulary]``."""
    probabilities: Tensor
    """float32 ``[tokens, vocabulary]``: softmax of the logits."""
    log_norm: Tensor
    """float64 ``[tokens]``: log of the sum of exponentials of the logits."""
    top: Tensor
    """int64 ``[tokens]``: the most likely next token."""
    labels: Tensor
    """int64 ``[tokens]``: the token that follows in the text, -1 at the end of a sequence."""

    @property
    def nll(self) -> Tensor:
        """float64 ``[labeled tokens]`` on the CPU: negative log-likelihood of the text's tokens, in nats."""
        return _label_nll(self.logits, self.log_norm, self.labels)


@dataclass(frozen=True)
class TokenStats:
    """A variant against the reference, token by token, on the CPU."""

    kl: Tensor
    """float64 ``[tokens]``: KL(reference || variant) in nats, never negative, exactly 0 for identical logits."""
    same_top: Tensor
    """bool ``[tokens]``: the most likely next token is unchanged."""
    nll: Tensor
    """float64 ``[labeled tokens]``: negative log-likelihood of the text's tokens, in nats."""

    @classmethod
    def checked(cls, kl: Tensor, same_top: Tensor, nll: Tensor) -> TokenStats:
        """Build a comparison from tensors of any device and precision.

        Raises:
            MeasurementError: a KL is not finite.
        """
        if not torch.isfinite(kl).all():
            msg = f"{int((~torch.isfinite(kl)).sum())} of {len(kl)} tokens have a loss that is not finite"
            raise MeasurementError(msg)
        return cls(kl.cpu().to(torch.float64), same_top.cpu(), nll)

    def rows(self, count: int, parts: Iterable[slice]) -> list[TokenStats]:
        """The comparisons of some of the ``count`` sequences, all of one length."""
        kl, same_top, nll = (values.view(count, -1) for values in (self.kl, self.same_top, self.nll))
        return [TokenStats(kl[part].flatten(), same_top[part].flatten(), nll[part].flatten()) for part in parts]

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
    """Concatenate the tokens of several batches."""
    return TokenStats(
        torch.cat([part.kl for part in parts]),
        torch.cat([part.same_top for part in parts]),
        torch.cat([part.nll for part in parts]),
    )


def reference_of(logits: Tensor, tokens: Tensor) -> Reference:
    """Prepare a reference.

    Args:
        logits: the reference's logits ``[rows, seq_len, vocabulary]``.
        tokens: int64 ``[rows, seq_len]``, the text itself.

    Raises:
        MeasurementError: logits are not finite.
    """
    flat = logits.to(torch.float32).flatten(0, -2)
    if not all_finite(flat):
        msg = "the reference's logits are not finite; the model overflows in float32 on this text"
        raise MeasurementError(msg)
    labels = functional.pad(tokens[..., 1:], (0, 1), value=-1).flatten().to(flat.device)
    norms = [torch.logsumexp(chunk.to(wide(chunk)), -1) for chunk in flat.split(cache_rows(flat))]
    log_norm = torch.cat(norms)
    return Reference(flat, torch.softmax(flat, -1), log_norm, flat.argmax(-1), labels)


def compare(reference: Reference, logits: Tensor) -> TokenStats:
    """Compare a variant's logits ``[..., vocabulary]`` of the same tokens with the reference's.

    With ``u`` the variant's logits minus the reference's, ``m = sum(p u)`` and ``x = u - m``::

        KL(p || q) = log sum(p exp(x)) = log1p(sum(p (expm1(x) - x)))

    because ``sum(p x) = 0``. Every term is at least 0 and none cancels, so tiny losses keep their digits where the
    direct ``sum(p (log p - log q))`` drowns in rounding. The variant's normalizer follows:
    ``log Z_q = log Z_p + m + KL``.

    Raises:
        MeasurementError: logits are not finite, or have another shape.
    """
    flat = logits.flatten(0, -2)
    if flat.shape != reference.logits.shape:
        msg = f"logits of shape {tuple(flat.shape)} cannot be compared with {tuple(reference.logits.shape)}"
        raise MeasurementError(msg)
    rows = cache_rows(flat)
    space = flat.new_empty(2, min(rows, len(flat)), flat.shape[-1], dtype=torch.float32)
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    for start in range(0, len(flat), rows):
        chunk = slice(start, start + rows)
        variant = flat[chunk].to(torch.float32)
        kl, shift = _kl_and_shift(reference.probabilities[chunk], reference.logits[chunk], variant, space)
        best = variant.gather(-1, reference.top[chunk].unsqueeze(-1)).squeeze(-1)
        found.append((kl, shift, best >= variant.amax(-1)))
    kl, shift, same_top = (torch.cat(parts) for parts in zip(*found, strict=True))
    nll = _label_nll(flat, reference.log_norm + shift + kl, reference.labels)
    return TokenStats.checked(kl, same_top, nll)


@dataclass(frozen=True)
class OutputError:
    """A tensor's own output against the reference's, as vectors over all tokens and features."""

    sqnr_db: float
    """Signal to quantization noise ``10 log10(sum(r^2) / sum((a - r)^2))`` in dB; inf if nothing changed."""
    cosine: float
    """Cosine of the angle between the two; 1 if they point the same way."""


def metrics_of(stats: TokenStats, output: OutputError) -> dict[str, Any]:
    """The metrics of `qplan.run.metrics` by name: each is a property of one of the two."""
    return {name: getattr(stats if hasattr(stats, name) else output, name) for name in METRICS}


@dataclass(frozen=True)
class OutputScale:
    """A reference output with its energy, which the outputs of several formats are compared with."""

    reference: Tensor
    """float32, any shape."""
    signal: float = field(init=False)
    """Its sum of squares."""

    def __post_init__(self) -> None:
        """Convert to float32 and sum the squares once."""
        object.__setattr__(self, "reference", self.reference.to(torch.float32))
        object.__setattr__(self, "signal", _dot(self.reference, self.reference))

    def error(self, actual: Tensor) -> OutputError:
        """Compare another output of the same shape."""
        difference = actual.to(torch.float32) - self.reference
        noise, along = _dot(difference, difference), _dot(self.reference, difference)
        if noise == 0:
            return OutputError(math.inf, 1.0)
        if self.signal == 0:
            return OutputError(-math.inf, 0.0)
        length = self.signal + 2 * along + noise
        cosine = (self.signal + along) / math.sqrt(self.signal * length) if length > 0 else 0.0
        return OutputError(10 * math.log10(self.signal / noise), min(1.0, max(-1.0, cosine)))


def _kl_and_shift(probabilities: Tensor, logits: Tensor, variant: Tensor, space: Tensor) -> tuple[Tensor, Tensor]:
    """KL and shift, see `compare`; ``space [2, rows, vocabulary]`` is a buffer: allocating costs more than the sums."""
    centered, terms = space[:, : len(variant)]
    torch.sub(variant, logits, out=centered)
    shift = torch.linalg.vecdot(probabilities, centered)
    centered.sub_(shift.unsqueeze(-1))
    total = torch.linalg.vecdot(probabilities, excess(centered, centered.amax(), terms)).clamp(min=0)
    dtype = wide(total)
    return torch.log1p(total.to(dtype)), shift.to(dtype)


def excess(x: Tensor, highest: Tensor, out: Tensor) -> Tensor:
    """Write ``expm1(x) - x`` into ``out``; not negative, up to rounding.

    If all of ``x`` is small, the difference would cancel. Then ``x^2 (1/2 + x/6 + x^2/24 + x^3/120)`` is used; its
    next term is ``x^4/360`` of the sum, below 3e-9 at the limit.

    Args:
        x: any values.
        highest: the largest of them, or of each row.
        out: the result, of the same shape.
    """
    if float(highest.max()) <= _SERIES_LIMIT and float(x.amin()) >= -_SERIES_LIMIT:
        torch.mul(x, 1 / 120, out=out).add_(1 / 24)
        return out.mul_(x).add_(1 / 6).mul_(x).add_(0.5).mul_(x).mul_(x)
    return torch.expm1(x, out=out).sub_(x)


def _label_nll(logits: Tensor, log_norm: Tensor, labels: Tensor) -> Tensor:
    known = labels >= 0
    chosen = logits.gather(-1, labels.clamp(min=0).unsqueeze(-1)).squeeze(-1)[known]
    return (log_norm[known] - chosen.to(log_norm.dtype)).cpu().to(torch.float64)


def _dot(left: Tensor, right: Tensor) -> float:
    # rows first: the last digits of one long sum depend on the thread count, which may differ in a resumed run
    return float(torch.linalg.vecdot(left, right).sum(dtype=wide(left)))


def wide(values: Tensor) -> torch.dtype:
    """The widest float type of a tensor's device: Apple's GPU has no float64."""
    return torch.float32 if values.device.type == "mps" else torch.float64


def _chunk(values: Tensor) -> int:
    return _CHUNK_ELEMENTS if values.device.type == "cpu" else _DEVICE_CHUNK_ELEMENTS


def cache_rows(logits: Tensor) -> int:
    """Rows of logits ``[rows, vocabulary]`` to process at a time."""
    return max(1, _chunk(logits) // logits.shape[-1])
