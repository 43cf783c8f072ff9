"""Budgets as users write them, and what they are in bytes of the files that ship."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from fractions import Fraction

from qplan.card import ModelCard
from qplan.cost.file_bytes import FixedBytes, file_bytes
from qplan.errors import InputError
from qplan.formats import WIDTHS
from qplan.planner.size import MOST_BYTES, NUMBER, UNITS
from qplan.uniform import uniform_formats

_UNDERSTOOD = (
    "write int8, int4 or fp16 (as large as that uniform export), 4.5bpw, 300MB, 1.2GB, 300MiB, or 60% (of uniform fp16)"
)
_UNIFORM = re.compile(r"fp16|int([1-9][0-9]{0,17})")
_AMOUNT = re.compile(rf"({NUMBER})\s*(bpw|%|[a-z]*)")
_MOST = {"bpw": 10**3, "%": 10**5}
"""Largest amount by unit: far above every model, and exact in the 64 bits that plans are solved in."""


class BudgetKind(StrEnum):
    """What a budget is measured in."""

    UNIFORM = "uniform"
    """As large as a uniform export."""
    BPW = "bpw"
    """Bits of weight and embedding files per parameter, see `qplan.cost.file_bytes.bits_per_weight`."""
    PERCENT = "percent"
    """Percentage of the bytes of uniform fp16's files."""
    BYTES = "bytes"
    """Bytes of all files that ship."""


@dataclass(frozen=True)
class Budget:
    """A limit on the size of the files that ship, as a user gave it. Its bytes depend on the model, see `resolve`."""

    text: str
    """As the user wrote it."""
    kind: BudgetKind
    amount: Fraction
    """Width of the uniform export in bits, bits per parameter, percent, or bytes, depending on `kind`."""
    unit: str
    """The unit the user thinks in: ``MB``, ``bpw``, ``%``."""

    @classmethod
    def parse(cls, text: str) -> Budget:
        """Read a budget.

        Args:
            text: ``int8``, ``fp16``, ``int4`` (other widths too): not larger than MNN's uniform export at that width,
                block 64, the head at 8 bits; ``4.5bpw``; ``300MB``, ``300MiB``, ``123456B``; ``60%``.

        Raises:
            InputError: the text is not understood, or the amount is zero or larger than any model.
        """
        clean = text.strip().lower()
        if uniform := _UNIFORM.fullmatch(clean):
            bits = int(uniform[1] or 16)
            if bits not in WIDTHS:
                widths = ", ".join(map(str, WIDTHS))
                msg = f"budget {text!r}: MNN has no uniform export of {bits} bits, only of {widths}; {_UNDERSTOOD}"
                raise InputError(msg)
            return cls(text, BudgetKind.UNIFORM, Fraction(bits), "MB")
        match = _AMOUNT.fullmatch(clean)
        if match is None:
            msg = f"budget {text!r} is not understood; {_UNDERSTOOD}"
            raise InputError(msg)
        amount, unit = Fraction(match[1]), match[2]
        if amount <= 0:
            msg = f"budget {text!r} is zero; {_UNDERSTOOD}"
            raise InputError(msg)
        if amount * UNITS.get(unit, 1) > _MOST.get(unit, MOST_BYTES):
            most = f"{_MOST[unit]:,}{unit}" if unit in _MOST else "10^18 bytes"
            msg = f"budget {text!r} is above the largest that is understood, {most}; {_UNDERSTOOD}"
            raise InputError(msg)
        if unit == "bpw":
            return cls(text, BudgetKind.BPW, amount, unit)
        if unit == "%":
            return cls(text, BudgetKind.PERCENT, amount, unit)
        if unit not in UNITS:
            given = f"has an unknown unit {unit!r}" if unit else "has no unit"
            msg = f"budget {text!r} {given}; {_UNDERSTOOD}"
            raise InputError(msg)
        return cls(text, BudgetKind.BYTES, amount * UNITS[unit], re.sub(r"[\d.\s]", "", text))

    @classmethod
    def of_bytes(cls, count: int) -> Budget:
        """The budget of a whole number of bytes."""
        return cls.parse(f"{count}B")

    @property
    def bits(self) -> int | None:
        """Width of the uniform export that defines the budget; None for other kinds."""
        return int(self.amount) if self.kind is BudgetKind.UNIFORM else None

    def resolve(self, card: ModelCard, fixed: FixedBytes, scale_bits: int = 16) -> ResolvedBudget:
        """Work out the budget in bytes for a model.

        Args:
            card: the model.
            fixed: bytes of its files besides the linear records.
            scale_bits: width of the uniform export's scales.
        """
        if self.kind is BudgetKind.UNIFORM:
            limit = file_bytes(card, uniform_formats(card, int(self.amount), scale_bits), fixed).total
            return ResolvedBudget(self, limit, Fraction(10**6))
        if self.kind is BudgetKind.BPW:
            size = Fraction(card.parameters, 8)
            return ResolvedBudget(self, int(self.amount * size) + fixed.graph, size, fixed.graph)
        if self.kind is BudgetKind.PERCENT:
            size = Fraction(file_bytes(card, uniform_formats(card, 16), fixed).total, 100)
            return ResolvedBudget(self, int(self.amount * size), size)
        return ResolvedBudget(self, int(self.amount), Fraction(UNITS[self.unit.lower()]))


@dataclass(frozen=True)
class ResolvedBudget:
    """A budget for one model."""

    budget: Budget
    limit_bytes: int
    """Weight, embedding and graph files together may not be larger."""
    unit_bytes: Fraction
    """Bytes per unit of the budget."""
    offset_bytes: int = 0
    """Bytes that the unit does not count: the graph, for bpw."""

    @property
    def text(self) -> str:
        """As the user wrote it."""
        return self.budget.text

    @property
    def unit(self) -> str:
        """The unit the user thinks in."""
        return self.budget.unit

    @property
    def bits(self) -> int | None:
        """Width of the uniform export that defines the budget; None for other kinds."""
        return self.budget.bits

    def express(self, total_bytes: int) -> str:
        """A number of bytes in the user's unit, rounded up, so that a budget of the result covers those bytes."""
        amount = Fraction(total_bytes - self.offset_bytes) / self.unit_bytes
        for digits in range(10):
            step = Fraction(1, 10**digits)
            rounded = -(-amount // step) * step
            if rounded and rounded - amount <= amount / 500:
                break
        separator = " " if self.unit not in ("%", "bpw") else ""
        return f"{float(rounded):.{digits}f}{separator}{self.unit}"


def parse_budgets(texts: Iterable[str]) -> tuple[Budget, ...]:
    """Read budgets that must all hold, from texts of one budget or several separated by commas.

    Raises:
        InputError: a budget is not understood, or a text holds none.
    """
    return tuple(
        Budget.parse(part.strip()) for text in texts for part in ([p for p in text.split(",") if p.strip()] or [text])
    )
