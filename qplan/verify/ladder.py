"""The rungs of the ladder: what each is held to, and what came of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from qplan.errors import InputError
from qplan.settings import Memory

TOLERANCES: Mapping[str, float] = {"fp32": 1e-4, "fp16": 1e-3, "int8": 0.02, "int4": 0.5, "plan": 0.5}
"""Largest KL to the torch model in FP32, nats per token, by rung. A usable model of that width stays below."""


@dataclass(frozen=True, kw_only=True)
class LadderOptions:
    """What ``qplan ladder`` was asked for."""

    model: str
    """Local folder or hub id."""
    text: str = "mixture"
    """Text that rungs are judged on, as for ``--calib``."""
    tokens: int = 1024
    """At most this many tokens of the text."""
    seq_len: int = 128
    memory: Memory = "low"
    plan: Path | None = None
    """A ``plan.json`` beside its built ``model/``."""
    limits: Mapping[str, float] = field(default_factory=dict)
    """Tolerances by rung, in place of the defaults."""
    llmexport: Path | None = None

    def __post_init__(self) -> None:
        """Refuse sequences that cannot be judged, and tolerances that mean nothing.

        Raises:
            InputError: names the option, its value and the limit.
        """
        if self.seq_len < 2:
            msg = f"--seq-len {self.seq_len}: must be at least 2, to predict one token from another"
            raise InputError(msg)
        if self.tokens < self.seq_len:
            msg = f"--tokens {self.tokens} is below one sequence of {self.seq_len} tokens; raise it"
            raise InputError(msg)
        tolerances(self.limits)

    @property
    def samples(self) -> int:
        """Sequences of the text."""
        return self.tokens // self.seq_len


@dataclass(frozen=True)
class Rung:
    """One model on the engine."""

    name: str
    exact_error: float
    """Relative error of the logits against torch with the same stored weights, memory normal."""
    exact_limit: float
    kl_nats: float
    """KL to the torch model in FP32, nats per token, with the settings that the model ships with."""
    limit_nats: float
    top1: float
    """Fraction of tokens whose most likely next token is that of FP32."""
    perplexity: float
    bytes: int

    @property
    def computes(self) -> bool:
        """Whether the engine computes what torch computes with the same weights."""
        return self.exact_error <= self.exact_limit

    @property
    def holds(self) -> bool:
        """Whether both tolerances hold; NaN holds nothing."""
        return self.computes and self.kl_nats <= self.limit_nats


@dataclass(frozen=True)
class Break:
    """Where a rung breaks: the first layer whose output is outside the tolerance."""

    layer: int | None
    """Its index; None if it is the embedding, or only the head."""
    what: str
    """The place in words."""
    error_before: float
    """Relative error (or KL in nats) of the logits looked at before that layer."""
    error_after: float
    measure: str
    """What is compared."""


def first_layer_beyond(errors: Callable[[int], float], layers: int, limit: float) -> tuple[int, float, float]:
    """Bisect for the first number of layers after which an error exceeds a limit.

    Args:
        errors: error after the first ``n`` layers, 0 to ``layers``; expensive.
        layers: of the model. The error after all of them exceeds the limit.
        limit: the tolerance.

    Returns:
        The number of layers, the error one layer earlier (0 if that is before the first), and the error there.
    """
    known: dict[int, float] = {}

    def at(count: int) -> float:
        if count not in known:
            known[count] = errors(count)
        return known[count]

    low, high = -1, layers  # the error at high exceeds the limit, the one at low does not
    while high - low > 1:
        middle = (low + high) // 2
        if at(middle) <= limit:
            low = middle
        else:  # NaN exceeds every limit
            high = middle
    return high, at(low) if low >= 0 else 0.0, at(high)


def tolerances(given: Mapping[str, float]) -> dict[str, float]:
    """The default tolerances with a user's in their place.

    Raises:
        InputError: an unknown rung, or a tolerance that is not positive.
    """
    for name, limit in given.items():
        if name not in TOLERANCES:
            msg = f"--tolerance {name}={limit:g}: there is no rung {name!r}; there are {', '.join(TOLERANCES)}"
            raise InputError(msg)
        if not (limit > 0 and math.isfinite(limit)):
            msg = f"--tolerance {name}={limit:g}: must be above 0 nats per token, and finite"
            raise InputError(msg)
    return dict(TOLERANCES) | dict(given)
