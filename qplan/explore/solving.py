"""What a notebook asks a plan for, and what such a plan is called."""

from __future__ import annotations

from collections.abc import Sequence

from qplan.choosing.request import PlanRequest
from qplan.planner.budget import Budget, parse_budgets
from qplan.planner.rules import Rules
from qplan.tensors import short_name

ANY_NATS = 1e3
"""A limit on the loss that every plan keeps, to ask for the smallest plan of all."""


def budgets_of(budget: str | int | Sequence[str] | None) -> tuple[Budget, ...]:
    """Budgets from what `qplan.explore.run.Run.solve` takes; whole numbers are bytes.

    Raises:
        InputError: one is not understood.
    """
    if budget is None:
        return ()
    if isinstance(budget, int):
        return (Budget.of_bytes(budget),)
    return parse_budgets([budget] if isinstance(budget, str) else budget)


def name_of(wanted: PlanRequest, memory: str | None) -> str:
    """A name to show for a plan: its budgets and limits, and the rules that are not the defaults."""
    rules, usual = wanted.rules, Rules()
    parts = [wanted.label or "any size"]
    parts += [f"memory {memory}"] if memory is not None else []
    if rules.logits_bits != usual.logits_bits:
        parts.append(f"head at least {rules.logits_bits} bits" if rules.logits_bits else "no logits rule")
    parts += [f"{short_name(pattern)} = {fmt}" for pattern, fmt in rules.pins.items()]
    parts += [f"{short_name(pattern)} at least {bits} bits" for pattern, bits in rules.min_bits.items()]
    parts += [f"groups {' '.join(rules.group_patterns)}"] if rules.group_patterns else []
    parts += ["fused groups"] if rules.fused else []
    parts += [f"metric {rules.metric.value}"] if rules.metric is not usual.metric else []
    parts += [f"parity {rules.parity}"] if rules.parity != usual.parity else []
    return ", ".join(parts)
