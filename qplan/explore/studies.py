"""Studies of a run that take several solves: what a rule costs, and which memory setting a plan suits."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd

from qplan.explore.opened import OpenedRun
from qplan.explore.solving import ANY_NATS
from qplan.report import notation

_BUDGETS = 6
"""How many sizes a rule's price is computed at by default."""


def price_of_logits_rule(run: OpenedRun, budgets: Sequence[str | int] | None, logits_bits: int) -> pd.DataFrame:
    """Solve every budget with and without the logits rule; see `qplan.explore.run.Run.price_of_logits_rule`."""
    if budgets is None:
        smallest = run.solve(None, objective="smallest", max_kl=ANY_NATS, logits_bits=logits_bits).total_bytes
        widest = run.first_feasible("int8", "fp16", logits_bits=logits_bits)
        largest = max(run.solve(widest, logits_bits=logits_bits).total_bytes, smallest)
        budgets = [math.ceil(size) for size in np.geomspace(smallest, largest, _BUDGETS)]
    rows = []
    for budget in budgets:
        held, free = run.solve(budget, logits_bits=logits_bits), run.solve(budget, logits_bits=0)
        rows.append(
            {
                "budget": notation.size(budget) if isinstance(budget, int) else budget,
                "budget_bytes": held.plan.budget_bytes,
                "head": held.head_format,
                "head_without": free.head_format,
                "nats": held.predicted_nats,
                "nats_without": free.predicted_nats,
                "price_nats": held.predicted_nats - free.predicted_nats,
            }
        )
    return pd.DataFrame(rows).sort_values("budget_bytes", ignore_index=True)


def across_memories(run: OpenedRun, budget: str | int) -> pd.DataFrame:
    """Plan for each memory setting and sum losses under every one; see `qplan.explore.run.Run.across_memories`."""
    table = run.table.table
    # at equal bytes: RAM and times are other limits under each setting
    plans = {memory: run.solve(budget, memory=memory, parity="files").plan.formats for memory in table.memories}
    sums = {
        memory: {
            made_for: math.fsum(losses[name][fmt.name] for name, fmt in formats.items())
            for made_for, formats in plans.items()
        }
        for memory, losses in ((memory, table.kl(memory)) for memory in table.memories)
    }
    return pd.DataFrame(sums).rename_axis(index="planned_for", columns="run_under")
