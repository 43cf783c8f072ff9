"""What a uniform budget means for a folded model: the bytes of the unfolded export, or else of the folded one."""

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
    """Plan within the bytes of the unfolded uniform export, or within those of the folded one if nothing fits.

    MNN's exporter does not fold, so ``int8`` means the size of its export of the model as the user gave it. A folded
    tied head adds an op to the graph, and at the smallest budgets those bytes may make the difference.

    Args:
        solve: makes the best plan under given rules.
        rules: what the user asks for besides budgets and limits.
        fixed: bytes that every plan ships.
        unfolded: fixed bytes of the model before folding; None if nothing was folded.
        say: called with the reason if no plan fits the unfolded export's bytes.

    Raises:
        InfeasibleError: no plan fits either; the message gives the nearest value that does.
    """
    more = 0 if unfolded is None else fixed.total - unfolded.total
    if more <= 0:
        return solve(rules)
    try:
        return solve(replace(rules, uniform_fixed=unfolded))
    except InfeasibleError as error:
        if say is not None:
            say(f"no plan within the bytes of the unfolded uniform export: {error}")
    return solve(rules).noted(note("folded-budgets", more_bytes=more))
