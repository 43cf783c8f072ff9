"""Budgets as users write them, resolved to bytes of the files that ship."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from fractions import Fraction

from qplan.card import ModelCard
from qplan.cost.file_bytes import FixedBytes, file_bytes
from qplan.errors import InputError
from qplan.formats import WIDTHS
from qplan.uniform import uniform_formats

UNITS = {
    "b": 1,
    "bytes": 1,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "kib": 2**10,
    "mib": 2**20,
    "gib": 2**30,
}
"""Bytes per unit, by its name in small letters."""

_UNDERSTOOD = (
    "write int8, int4 or fp16 (as large as that uniform export), 4.5bpw, 300MB, 1.2GB, 300MiB, or 60% (of uniform fp16)"
)
_UNIFORM = re.compile(r"^(fp16|int(\d+))$")
_AMOUNT = re.compile(r"^(\d+(?:\.\d*)?|\.\d+)\s*(bpw|%|[a-z]*)$")


class BudgetKind(StrEnum):
    """What a budget is measured in."""

    UNIFORM = "uniform"
    """As large as a uniform export."""
    BPW = "bpw"
    """Bits of weight and embedding files per parameter, see `qplan.cost.file_bytes.bits_per_weight`."""
    PERCENT = "percent"
    """Of uniform fp16's files."""
    BYTES = "bytes"
    """Of all files that ship."""


@dataclass(frozen=True)
class Budget:
    """A limit on the bytes of the files that ship."""

    text: str
    """As the user wrote it."""
    kind: BudgetKind
    limit_bytes: int
    """Weight, embedding and graph files together may not be larger."""
    unit: str
    """The unit the user thinks in: ``MB``, ``bpw``, ``%``."""
    unit_bytes: Fraction
    """Bytes per unit."""
    offset_bytes: int
    """Bytes that the unit does not count: the graph, for bpw."""
    bits: int | None = None
    """Width of the uniform export that defines the budget."""

    def express(self, total_bytes: int) -> str:
        """A number of bytes in the user's unit, rounded up, so that it is feasible where the bytes are."""
        amount = Fraction(total_bytes - self.offset_bytes) / self.unit_bytes
        for digits in range(10):
            step = Fraction(1, 10**digits)
            rounded = -(-amount // step) * step
            if rounded and rounded - amount <= amount / 500:
                break
        separator = " " if self.unit not in ("%", "bpw") else ""
        return f"{float(rounded):.{digits}f}{separator}{self.unit}"


def resolve_budget(text: str, card: ModelCard, fixed: FixedBytes, scale_bits: int = 16) -> Budget:
    """Turn a user's budget into bytes.

    Args:
        text: ``int8``, ``fp16``, ``int4`` (other widths too): not larger than MNN's uniform export at that width,
            block 64, the head at 8 bits; ``4.5bpw``; ``300MB``, ``300MiB``, ``123456B``; ``60%``.
        card: the model.
        fixed: what its files hold besides linear records.
        scale_bits: of the uniform export's scales.

    Raises:
        InputError: the text is not understood, or means nothing.
    """
    clean = text.strip().lower()
    if uniform := _UNIFORM.match(clean):
        return _uniform_budget(text, 16 if uniform[1] == "fp16" else int(uniform[2]), card, fixed, scale_bits)
    match = _AMOUNT.match(clean)
    if match is None:
        msg = f"budget {text!r} is not understood; {_UNDERSTOOD}"
        raise InputError(msg)
    amount, unit = Fraction(match[1]), match[2]
    if amount <= 0:
        msg = f"budget {text!r} is nothing; {_UNDERSTOOD}"
        raise InputError(msg)
    if unit == "bpw":
        size = Fraction(card.parameters, 8)
        return Budget(text, BudgetKind.BPW, int(amount * size) + fixed.graph, "bpw", size, fixed.graph)
    if unit == "%":
        size = Fraction(file_bytes(card, uniform_formats(card, 16), fixed).total, 100)
        return Budget(text, BudgetKind.PERCENT, int(amount * size), "%", size, 0)
    if unit not in UNITS:
        given = f"has an unknown unit {unit!r}" if unit else "has no unit"
        msg = f"budget {text!r} {given}; {_UNDERSTOOD}"
        raise InputError(msg)
    written = re.sub(r"[\d.\s]", "", text)
    return Budget(text, BudgetKind.BYTES, int(amount * UNITS[unit]), written, Fraction(UNITS[unit]), 0)


def _uniform_budget(text: str, bits: int, card: ModelCard, fixed: FixedBytes, scale_bits: int) -> Budget:
    if bits not in WIDTHS:
        msg = f"budget {text!r}: MNN has no uniform export of {bits} bits, only {WIDTHS}; {_UNDERSTOOD}"
        raise InputError(msg)
    limit = file_bytes(card, uniform_formats(card, bits, scale_bits), fixed).total
    return Budget(text, BudgetKind.UNIFORM, limit, "MB", Fraction(10**6), 0, bits)
