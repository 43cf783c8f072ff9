"""What a proof on emulated ARM processors runs, and what that takes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from qplan.cost.engine import EngineCost
from qplan.cost.work import Work
from qplan.settings import Precision

PATHS: tuple[Literal["prefill", "decode"], ...] = ("prefill", "decode")
"""One pass over a row, and token by token."""

_MOST_TOKENS, _LEAST_TOKENS = 512, 64
_MOST_WORK = 3e10
"""Weights times tokens of a prefill: one to two minutes of an emulated processor."""
_DECODED = 8
"""Tokens of the prefill for each that also goes through by itself."""

# processor seconds of qemu 10 and 11, ``reports/arm``
_START_S = 2.5
"""Seconds until the emulated process has loaded Python, NumPy and MNN."""
_SLOWER = 75.0
"""Times as long as the engine's products without an emulator."""
_OP_S = 1.2e-4
"""Seconds for each linear of each token, of what is no product."""


def proof_precisions(ships: Precision) -> tuple[Precision, ...]:
    """MNN's ``precision`` settings that a plan is proved at: the one that it ships with first, and one in fp32."""
    return (ships, "high") if ships == "low" else (ships,)


def proof_tokens(weights: int, available: int, seq_len: int) -> tuple[int, int]:
    """Tokens of the prefill and, of these, those that go through one by one.

    Args:
        weights: of the model.
        available: held-out tokens.
        seq_len: of a row of them; a prefill of more is whole rows.
    """
    most = min(_MOST_TOKENS, available, max(_LEAST_TOKENS, int(_MOST_WORK / weights)))
    tokens = most if most < seq_len else most // seq_len * seq_len
    return tokens, min(seq_len, max(1, tokens // _DECODED))


def proofs_at_once(processors: int, machine: int) -> int:
    """Emulated processors that run side by side on a machine with so many of its own: each takes one."""
    return max(1, min(processors, machine))


@dataclass(frozen=True)
class ArmCost:
    """The proof of a plan on emulated processors."""

    engine: EngineCost
    processors: int
    at_once: int
    available: int
    """Held-out tokens."""
    precision: Precision = "low"
    """The one that the plan ships with."""

    @property
    def predictions(self) -> list[int]:
        """Tokens of each pass in torch: with each arithmetic that processors may have, row by row."""
        tokens, steps = self._tokens
        seq_len, arithmetics = min(tokens, self.engine.seq_len), len(proof_precisions(self.precision))
        return [*[seq_len] * (arithmetics * (tokens // seq_len)), *[steps] * arithmetics]

    def runs(self) -> list[Work]:
        """Each run of each processor: two for a precision, prefill and decode, in equal parts."""
        tokens, steps = self._tokens
        others = _OP_S * (tokens + steps) * len(self.engine.shape.card.tensors)
        passed = self.engine.passed(self.engine.bits, tokens, steps).times(_SLOWER) + Work(seconds_anywhere=others)
        precisions = len(proof_precisions(self.precision))
        one = passed.times(precisions) + Work(seconds_anywhere=_START_S)
        all_of_them = one.times(math.ceil(self.processors / self.at_once))
        count = precisions * len(PATHS) * self.processors
        return [all_of_them.times(1 / count)] * count

    @property
    def _tokens(self) -> tuple[int, int]:
        weights = sum(spec.weights for spec in self.engine.shape.card.tensors)
        return proof_tokens(weights, self.available, self.engine.seq_len)

    @property
    def memory_bytes(self) -> float:
        """Of the engines that run side by side."""
        return self.at_once * self.engine.memory(self.engine.bits, "low")
