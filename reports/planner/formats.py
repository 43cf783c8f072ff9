r"""Which widths and blocks pay off: plans of the same bytes with fewer and fewer formats to choose from.

Needs runs that were analyzed with every format, e.g.

    qplan analyze MODEL --mode gradient --run RUN --formats \\
        fp16,$(echo int{8,6,5,4,3,2}{,-b0,-b32,-b128} | tr ' ' ,)

Run with ``python -m reports.planner.formats RUN ...``; prints Markdown. Losses are the table's own, summed.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from qplan.cost.file_bytes import estimate_fixed
from qplan.errors import InfeasibleError
from qplan.formats import QuantFormat, parse_formats
from qplan.planner.budget import Budget
from qplan.planner.planning import make_plan
from qplan.run.folder import RunFolder
from qplan.run.table import SensitivityTable

BUDGETS = ("int2", "int3", "3.5bpw", "int4", "4.5bpw", "5bpw", "int5", "6bpw", "int6", "int8")
WIDTHS = (8, 6, 5, 4, 3, 2)


def menus() -> dict[str, tuple[QuantFormat, ...]]:
    """Sets of formats to choose from, by name."""
    wide = "fp16,int8,int6,int5,int4,int3,int2"
    blocks = (0, 32, 128)
    return {
        "all 25": parse_formats(",".join([wide, *(f"int{w}-b{b}" for w in WIDTHS for b in blocks)])),
        "block 64": parse_formats(wide),
        "block 64, 3-16 bits": parse_formats("fp16,int8,int6,int5,int4,int3"),
        "block 64, 4/8/16": parse_formats("fp16,int8,int4"),
        "+ int2-4 block 32": parse_formats(wide + ",int4-b32,int3-b32,int2-b32"),
        "+ int2-4 block 32, 128": parse_formats(wide + ",int4-b32,int3-b32,int2-b32,int4-b128,int3-b128,int2-b128"),
        "+ int8-b0": parse_formats(wide + ",int8-b0"),
        "+ block 128 everywhere": parse_formats(",".join([wide, *(f"int{w}-b128" for w in WIDTHS)])),
        "+ block 0 everywhere": parse_formats(",".join([wide, *(f"int{w}-b0" for w in WIDTHS)])),
        "+ block 32 everywhere": parse_formats(",".join([wide, *(f"int{w}-b32" for w in WIDTHS)])),
        "+ 0 at 5-8, 32 at 2-4": parse_formats(wide + ",int8-b0,int6-b0,int5-b0,int4-b32,int3-b32,int2-b32"),
        "+ 0 and 128": parse_formats(",".join([wide, *(f"int{w}-b{b}" for w in WIDTHS for b in (0, 128))])),
    }


def restricted(table: SensitivityTable, menu: Sequence[QuantFormat]) -> SensitivityTable:
    """The table with fewer formats."""
    kept = {
        (spec.name, choice.name)
        for spec in table.model.tensors
        for fmt in menu
        for choice in (fmt.resolve(spec.in_features), *([] if spec.tied else [fmt.halved(spec.in_features)]))
    }
    return replace(table, measurements=tuple(m for m in table.measurements if (m.tensor, m.format) in kept))


def main(runs: Sequence[Path]) -> None:
    """Solve every budget with every menu."""
    for run in runs:
        table = SensitivityTable.read(RunFolder(run).sensitivity)
        fixed = estimate_fixed(table.model)
        print(
            f"\n## {table.model.source.rpartition('/')[2]}, {table.conditions.mode}, "
            f"rounding {table.conditions.rounding}\n"
        )
        print("Sum of losses relative to all 25 formats, at the bytes of\n")
        print(f"| choice | {' | '.join(BUDGETS)} |\n|---{'|---' * len(BUDGETS)}|")
        losses: dict[str, dict[str, float]] = {}
        taken: Counter[str] = Counter()
        for name, menu in menus().items():
            fewer, row = restricted(table, menu), losses.setdefault(name, {})
            for budget in BUDGETS:
                try:
                    plan = make_plan(fewer, Budget.parse(budget), fixed)
                except InfeasibleError:
                    continue
                row[budget] = plan.predicted_nats
                if name == "all 25":
                    taken.update({t.format.name: t.weights for t in plan.tensors})
            cells = [f"{row[b] / losses['all 25'][b]:.3f}" if b in row else "-" for b in BUDGETS]
            print(f"| {name} | {' | '.join(cells)} |", flush=True)
        total = sum(taken.values())
        print("\nFormats chosen when all 25 are offered, by share of the weights over these budgets: ", end="")
        print(", ".join(f"{name} {count / total:.1%}" for name, count in taken.most_common()))


if __name__ == "__main__":
    main([Path(argument) for argument in sys.argv[1:]])
