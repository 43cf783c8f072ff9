"""What a uniform budget means for a folded model: the bytes of the unfolded export, else of the folded one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from qplan.cost.file_bytes import FixedBytes
from qplan.errors import InfeasibleError
from qplan.notes import note
from qplan.planner.rules import Rules
from qplan.run.plan import Plan
from qplan.settings import Say


def within_uniform(
    solve: Callable[[Rules], Plan],
    rules: Rules,
    fixed: FixedBytes,
    unfolded: FixedBytes | None,
    *,
    say: Say | None = None,
) -> Plan:
    """The plan within the bytes of the unfolded uniform export; within those of the folded one if nothing else fits.

    MNN's exporter knows no folds, so ``int8`` means what it would make of the model as the user gave it. A folded tied
    head adds an op to the graph, and at the smallest budgets those bytes may be what lacks.

    Args:
        solve: the best plan under rules.
        rules: what the user wants.
        fixed: bytes that ship whatever the plan.
        unfolded: the same of the model before folding; None where nothing is folded.
        say: called with why the unfolded export's bytes do not do.

    Raises:
        InfeasibleError: no plan fits either way; names the nearest value.
    """
    more = 0 if unfolded is None else fixed.total - unfolded.total
    if more <= 0:
        return solve(rules)
    try:
        return solve(replace(rules, uniform_fixed=unfolded))
    except InfeasibleError as error:
        if say is not None:
            say(f"not within the bytes of the unfolded uniform export: {error}")
    return solve(rules).noted(note("folded-budgets", more_bytes=more))
