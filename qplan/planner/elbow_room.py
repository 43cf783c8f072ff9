"""Whether a menu leaves plans a choice: at a budget that only the smallest formats fit, there is nothing to plan."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from qplan.cost.file_bytes import FixedBytes
from qplan.formats import INT_BITS
from qplan.notes import Note, note
from qplan.planner.budget import Budget
from qplan.planner.problem import Problem
from qplan.planner.rules import Rules
from qplan.run.table import SensitivityTable

_ROOM = 0.01
"""Share of a budget that must be left beyond the smallest plan, or there is as good as no choice."""


def is_cramped(problem: Problem) -> bool:
    """Whether as good as every tensor must take its smallest format, while the engine knows narrower ones."""
    if problem.limit_bytes is None or narrower_bits(problem) is None:
        return False
    smallest = sum(
        min((c.bytes for c in group.choices if not group.is_head or c.format.bits >= problem.logits_bits), default=0)
        for group in problem.groups
    )
    return smallest <= problem.limit_bytes < smallest * (1 + _ROOM)


def narrower_bits(problem: Problem) -> int | None:
    """The next width below all that tensors other than the head may take; None if there is none."""
    widths = [choice.format.bits for group in problem.groups if not group.is_head for choice in group.choices]
    return max((bits for bits in INT_BITS if bits < min(widths, default=0)), default=None)


def rules_within(table: SensitivityTable) -> Rules:
    """The default rules as far as a table's formats allow; `emit` asks for ``--logits-bits`` where they don't."""
    widest = max((fmt.bits for fmt in table.formats_of(table.model.tensors[-1].name)), default=0)
    return Rules(logits_bits=min(Rules.logits_bits, widest))


def notes_on_menu(table: SensitivityTable, fixed: FixedBytes, budgets: Sequence[Budget]) -> Iterator[Note]:
    """Say at which budgets a table's formats leave no choice, under the default rules."""
    rules = rules_within(table)
    problem = rules.problem(table.model, rules.losses(table), None)
    cramped = [
        budget.text
        for budget in budgets
        if is_cramped(problem.within(budget.resolve(table.model, fixed).limit_bytes - fixed.total))
    ]
    bits = narrower_bits(problem)
    if cramped and bits is not None:
        yield note("menu-without-choice", budgets=cramped, narrower=f"int{bits}")
